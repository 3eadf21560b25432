"""What was computed of prompts: in the slots, in RAM, on disk.

``prefix_cache.py`` finds the longest prefix that a slot holds (``prefix.py``), ``host_cache.py``
keeps what lost its slot, and ``disk_cache.py`` what outlives the process: files (``state_file.py``)
in a directory that processes share (``state_directory.py``, ``disk_index.py``), fetched beside the
engine's thread (``fetches.py``) for those that wait (``disk_waits.py``).
"""
