// One conversation in Open WebUI: answers that stream, one stopped in the middle, a reload.
//
//     node open_webui.mjs http://127.0.0.1:8080 smollm2-135m-instruct [directory for pictures]
//
// docs/front_ends.md says how to start what it talks to. No part of `make test`.
import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const [url = 'http://127.0.0.1:8080', model = 'smollm2-135m-instruct', pictures] =
  process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox'],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
page.on('response', (answer) => {
  if (answer.status() >= 400) console.log('refused:', answer.status(), answer.url());
});
const stop = page.getByRole('button', { name: 'Stop', exact: true });
let picture = 0;

async function look() {
  if (pictures) await page.screenshot({ path: `${pictures}/${++picture}.png` });
}

async function ask(question) {
  await page.locator('#chat-input').click();
  await page.keyboard.type(question);
  await page.keyboard.press('Enter');
  await stop.waitFor();
  console.log(`> ${question}`);
}

const lastAnswer = async () =>
  (await page.locator('.chat-assistant').last().innerText()).trim();

// The lengths in which an answer was seen, until it ends or is longer than `most`.
async function watch(most = Infinity) {
  const lengths = new Set();
  while (await stop.isVisible()) {
    const length = (await lastAnswer().catch(() => '')).length;
    lengths.add(length);
    if (length > most) break;
    await page.waitForTimeout(20);
  }
  return lengths.size;
}

async function answered() {
  await watch();
  await look();
  const text = await lastAnswer();
  console.log(text);
  assert(text, 'an answer');
}

const conversation = async () =>
  (await page.locator('#messages-container').innerText()).replace(/\s+/g, ' ');

// The release notes cover the page of who comes for the first time.
const notes = page.getByRole('button', { name: /Let's Go/ });
await page.addLocatorHandler(notes, () => notes.click());
await page.goto(`${url}/?models=${model}`);
await ask('What is the capital of France?');
await answered();
await ask('What is it known for?');
await answered();

await ask('Write a long story about a boat.');
const seen = await watch(200);
assert(seen > 5, `an answer that streams, not one seen in ${seen} lengths`);
await look();
await stop.click();
await stop.waitFor({ state: 'detached' });
const stopped = await lastAnswer();
await page.waitForTimeout(3000);
assert.equal(await lastAnswer(), stopped, 'nothing comes after a stop');
console.log(`${stopped}\n(stopped)`);

await ask('Thank you.');
await answered();
const before = await conversation();
await page.reload();
await page.locator('.chat-assistant').last().waitFor();
await page.waitForTimeout(2000);
await look();
assert.equal(await conversation(), before, 'a reload shows the same');
await ask('What did I ask you first?');
await answered();
await browser.close();
