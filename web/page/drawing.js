// Drawing: from a job's request to its picture or its error.
import { howItCame } from './caption.js';
import { retryTime } from './failure.js';
import { addressOf } from './form.js';
import { remember } from './history.js';
import { change } from './jobs.js';
import { kept } from './kept.js';
import { countDrawings, refuseKey } from './key.js';
import { signOrSayWhy } from './links.js';
import { ask, withKey } from './server.js';

/** Obtain the picture of a job, drawn now if it has to be. `isHit`: it is known to be in the cache. */
export async function run(job) {
  const { wanted, isHit } = job;
  const { signal } = job.run = new AbortController();
  const [began, key] = [performance.now(), kept.get('key')];
  change(job, { state: 'waiting', began, sayAt: 15 });
  try {
    // One that was drawn before a reload, and deleted since, is not drawn again.
    if (job.isDrawn && !await isCached(wanted)) { change(job, { state: 'stopped' }); return; }
    const { response, isLate } = await askUntilDrawn(wanted, signal);
    const signing = signOrSayWhy(wanted);
    const { src, type } = await fileOf(response, signing);
    const image = await imageOf(src);
    const signed = await signing;
    if (signal.aborted) return;
    const seconds = (performance.now() - began) / 1000;
    const how = howItCame(response, isHit);
    if (isLate && how.source === 'cache') how.source = 'other'; // drawn for this view all the same
    if (!isHit) remember(wanted, how.source !== 'cache' && seconds, image);
    change(job, { state: 'done', image, signed, seconds, type, ...how });
  } catch (error) {
    if (!signal.aborted) fail(job, error, key);
  }
  if (!isHit) countDrawings();
}

function fail(job, error, key) {
  if (error.status !== 401) change(job, { state: 'failed', error, retryAt: retryTime(error) });
  // By now there may be another key.
  else if (kept.get('key') !== key) change(job, { state: kept.get('key') ? 'queued' : 'key' });
  else { refuseKey(); change(job, { state: 'key', wrong: error.message }); }
}

/** Return whether the picture is in the cache, or at its host. Throws like `ask`. */
export async function isCached(wanted) {
  const response = await ask(addressOf(wanted), { method: 'HEAD', headers: withKey() });
  return howItCame(response).source !== 'other';
}

/** Ask again as long as the service says that the drawing goes on (ANSWER_WITHIN). */
async function askUntilDrawn(wanted, signal) {
  for (let isLate = false; ; isLate = true) {
    try {
      return { response: await ask(addressOf(wanted), { headers: withKey(), signal }), isLate };
    } catch (error) {
      if (error.remedy !== 'reload') throw error;
      await new Promise((resolve) => { setTimeout(resolve, error.retryAfter * 1000); });
    }
  }
}

/** Return the picture's URL, and its media type unless an image host has it. */
async function fileOf(response, signing) {
  if (response.type === 'opaqueredirect') {
    const { url, error } = await signing;
    if (error) throw error;
    return { src: url };
  }
  const type = response.headers.get('Content-Type') ?? '';
  // The browser takes a prompt of two dots for the folder above, which is this page.
  if (!type.startsWith('image/')) throw Object.assign(new Error(), { status: 400 });
  return { src: URL.createObjectURL(await response.blob()), type };
}

async function imageOf(src) {
  const image = Object.assign(new Image(), { src });
  await image.decode().catch(() => { throw Object.assign(new Error(), { status: 502 }); });
  return image;
}
