// The caption under the picture: its parameters, where it came from, links and download.
import { OPTIONS } from './form.js';
import { markShare } from './share.js';
import { $, duration, isText, reasonsOf, sizeFacts, t } from './words.js';

const EXTENSIONS = { 'image/png': 'png', 'image/jpeg': 'jpg', 'image/webp': 'webp', 'image/gif': 'gif' };

/** Read `PromptImageProxy; hit` or `…; fwd=miss; detail=backend`, and the stages with their times. */
export function howItCame({ type, headers }, isHit = false) {
  if (type === 'opaqueredirect') return { source: 'hosted', stages: [] };
  const status = (headers.get('Cache-Status') ?? '').split(',').find((one) => one.includes('PromptImageProxy')) ?? '';
  if (isHit || /;\s*hit\b/.test(status)) return { source: 'cache', stages: [] };
  const source = /;\s*detail=(\w+)/.exec(status)?.[1];
  const timing = (headers.get('Server-Timing') ?? '').matchAll(/([\w-]+);dur=([\d.]+)(?:;desc="(\w*)")?/g);
  const stages = [...timing].map(([, stage, dur, outcome]) => ({ stage, outcome, seconds: dur / 1000 }));
  return { source: isText(`how.${source}`) ? source : 'other', stages };
}

export function fillCaption({ wanted, source, stages, seconds, type, signed }) {
  const { naturalWidth, naturalHeight, src } = $('picture');
  const final = signed.final_prompt === wanted.prompt ? '' : signed.final_prompt;
  const options = OPTIONS.filter((name) => wanted[name]).map((name) => `${t(name)}: ${wanted[name]}`);
  const facts = [...sizeFacts(wanted, naturalWidth, naturalHeight), wanted.model, ...options, t('seed.is', wanted)];
  $('picture').alt = $('title').textContent = wanted.prompt;
  $('final').hidden = !final;
  $('final').querySelector('span').replaceChildren(...(final ? markShare(wanted.prompt, final) : []));
  $('facts').textContent = facts.filter(Boolean).join(' · ');
  $('how').textContent = t(`how.${source}`, { time: duration(seconds) });
  $('how').dataset.source = source;
  fillStages($('stage').querySelector('figcaption .stages'), stages);
  fillDownload(src, type && nameOf(wanted, type));
  const isSigningOff = signed.error?.status === 403;
  for (const node of $('actions').children) node.hidden = isSigningOff && !['download', 'copy-picture'].includes(node.id);
  // From an image host, a script may not read it; and over plain http, nothing may be copied but text.
  if (!type || !navigator.clipboard?.write) $('copy-picture').hidden = true;
}

/** Offer the picture as a file; from an image host, whose files a script may not save, as a page. */
function fillDownload(href, name) {
  const textContent = t(name ? 'download' : 'download.hosted');
  Object.assign($('download'), { href, textContent, target: name ? '' : '_blank' });
  if (name) $('download').download = name;
  else $('download').removeAttribute('download');
}

/** Name a file after its prompt and its seed, `a-red-apple-42.png`. */
export function nameOf({ prompt, seed }, type) {
  const words = prompt.match(/[\p{L}\p{M}\p{N}]+/gu) ?? ['picture'];
  const start = [...words.join('-')].slice(0, 60).join('').replace(/-$/, '');
  return `${start}-${seed}.${EXTENSIONS[type] ?? 'png'}`;
}

/** Show stages as a bar in true proportion, and name them under it. */
export function fillStages(part, stages) {
  part.hidden = !stages.length;
  const bar = Object.assign(document.createElement('div'), { className: 'proportions', ariaHidden: true });
  const legend = Object.assign(document.createElement('ol'), { ariaLabel: t('stages') });
  for (const { stage, outcome, seconds, why = outcome } of stages) {
    const piece = document.createElement('i');
    // Milliseconds: below a sum of 1, flex-grow would leave a rest.
    piece.style.flexGrow = seconds * 1000;
    const words = [`stage.${stage}`, `outcome.${outcome}`].filter(isText).map((one) => t(one));
    const reason = why === outcome ? [] : [`(${reasonsOf(why)})`];
    const item = document.createElement('li');
    item.textContent = [...words, ...reason, duration(seconds)].join(' ');
    for (const node of [piece, item]) Object.assign(node.dataset, { stage, outcome });
    bar.append(piece);
    legend.append(item);
  }
  part.replaceChildren(bar, legend);
}
