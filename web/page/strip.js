// The filmstrip, and variants side by side: each job as a button that puts it on the stage.
import { errorText } from './failure.js';
import { fillForm, hashOf, readForm, setShape } from './form.js';
import { isUnfinished, jobs, onChange } from './jobs.js';
import { focusStage, onShow, show, view } from './stage.js';
import { $, inSeconds, onLanguage, t } from './words.js';

const tiles = new Map(); // the buttons of each job: in the strip, and among its variants

function makeTile(job) {
  const tile = Object.assign(document.createElement('button'), { type: 'button' });
  tile.append(Object.assign(new Image(), { alt: '', hidden: true }), document.createElement('span'));
  tile.addEventListener('click', () => pick(job));
  return tile;
}

/** Show a job, and let the form follow unless another prompt is being written. */
function pick(job) {
  show(job);
  if ([job.wanted.prompt, undefined].includes(readForm().prompt)) {
    fillForm(job.wanted);
    history.replaceState(null, '', hashOf(job.wanted));
  }
  focusStage();
}

function stateOf({ state, error, began }) {
  if (state === 'waiting') return inSeconds((performance.now() - began) / 1000, 0);
  if (state === 'failed') return errorText(error);
  return state === 'done' ? '' : t(`tile.${state}`);
}

function fillTiles(job) {
  for (const tile of tiles.get(job)) {
    const [image, text] = tile.children;
    const said = stateOf(job);
    image.hidden = job.state !== 'done';
    if (!image.hidden && !image.src) image.src = job.image.src;
    text.textContent = said;
    text.hidden = !said;
    tile.dataset.state = job.state;
    tile.ariaLabel = [t('tile', job.wanted), said].filter(Boolean).join(': ');
    tile.ariaCurrent = view === job ? 'true' : null;
  }
}

onChange((job) => {
  if (job.state === 'removed') {
    tiles.get(job)?.[0].parentNode.remove();
    tiles.delete(job);
  } else {
    if (!tiles.has(job)) addTiles(job);
    fillTiles(job);
  }
  $('strip').hidden = jobs.length < 2;
});

function addTiles(job) {
  const own = [makeTile(job), makeTile(job)];
  tiles.set(job, own);
  const item = document.createElement('li');
  item.classList.toggle('variant', Boolean(job.group));
  item.append(own[0]);
  $('strip').prepend(item);
  $('strip').scrollTo(0, 0);
}

onShow(() => {
  const group = view.state === 'group' ? view : null;
  if (group) {
    const { width, height } = group.wanted;
    setShape($('variant-tiles'), Number(width || height) || 1, Number(height || width) || 1);
    $('variant-tiles').replaceChildren(...group.jobs.filter((job) => tiles.has(job)).map((job) => tiles.get(job)[1]));
  }
  $('siblings').hidden = !view.group;
  if (group && !group.jobs.some(isUnfinished)) $('under').hidden = true;
  for (const job of tiles.keys()) fillTiles(job);
});

export const showSiblings = () => { show(view.group); focusStage(); };

onLanguage(() => { for (const job of tiles.keys()) fillTiles(job); });
setInterval(() => { for (const job of tiles.keys()) if (job.state === 'waiting') fillTiles(job); }, 1000);
