"""What a process finds that it may take, on machines made of files."""

from __future__ import annotations

from pathlib import Path

from openai_local.engine import machine

GIB = 1 << 30


def a_machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def topology(*siblings: str) -> dict[str, str]:
    """One text for each CPU that this process may use."""
    cpus = sorted(machine.allowed_cpus())
    path = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {path.format(cpu): siblings[i % len(siblings)] for i, cpu in enumerate(cpus)}


def test_hyper_threads_of_a_core_count_once(tmp_path: Path) -> None:
    assert machine.physical_cores(a_machine(tmp_path, topology("0-1\n"))) == 1


def test_without_a_topology_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert machine.physical_cores(tmp_path) == len(machine.allowed_cpus())


def test_a_quota_bounds_the_cores(tmp_path: Path) -> None:
    group = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}
    root = a_machine(tmp_path, group)
    assert machine.cpu_quota(root) == 1.5
    assert machine.physical_cores(root) == 1


def test_the_smallest_quota_of_the_groups_around_holds(tmp_path: Path) -> None:
    root = a_machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/outer/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/outer/inner/cpu.max": "800000 100000\n",
        },
    )
    assert machine.cpu_quota(root) == 2


def test_the_first_version_of_control_groups_is_understood(tmp_path: Path) -> None:
    root = a_machine(
        tmp_path,
        {
            "proc/meminfo": "MemAvailable: 67108864 kB\n",
            "proc/self/cgroup": "4:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"cache 7\ntotal_inactive_file {GIB}\n",
        },
    )
    assert machine.cpu_quota(root) == 0.5
    assert machine.physical_cores(root) == 1
    assert machine.memory_limit(root) == 4 * GIB
    assert machine.free_memory(root) == 2 * GIB


def test_a_container_may_take_what_its_limit_leaves(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB}\n",
        "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB // 2}\n",
    }
    root = a_machine(tmp_path, files)
    assert machine.free_memory(root) == GIB + GIB // 2
    a_machine(tmp_path, {"sys/fs/cgroup/memory.current": f"{3 * GIB}\n"})
    assert machine.free_memory(root) == 0
    a_machine(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})
    assert machine.memory_limit(root) is None
    assert machine.free_memory(root) == 32 * GIB


def test_a_limit_of_all_pages_is_none(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert machine.memory_limit(a_machine(tmp_path, files)) is None


def test_where_the_system_says_nothing_there_is_still_an_answer(tmp_path: Path) -> None:
    assert machine.free_memory(tmp_path) > 0
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory_limit(tmp_path) is None
