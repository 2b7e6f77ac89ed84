// The page at `/`: draws, shows how the picture came, and lists what was drawn here and what is in the cache.
// What comes from a person or a server becomes text, never HTML.
import { enlarge } from './dialogs.js';
import { isToBeChanged } from './failure.js';
import { fillForm, hashOf, readForm, shapeFrame, showModelField, wantedIn } from './form.js';
import * as gallery from './gallery.js';
import { emptyHistory, openHistory } from './history.js';
import { isUnfinished, jobOf } from './jobs.js';
import { kept, session } from './kept.js';
import { changeKey, countDrawings, fillKeyLine, keepKey, loadModels, refuseKey } from './key.js';
import { changeExtension, copyPicture, copySigned, signAgain } from './links.js';
import * as queue from './queue.js';
import { saveCards } from './saving.js';
import { chosen, deleteSelected, redrawSelected, selectAll, selectRange, showSelection, unselect } from './selection.js';
import { takeOver } from './share.js';
import { show, view } from './stage.js';
import { showSiblings } from './strip.js';
import { $, language, say, setLanguage, t } from './words.js';

// --- views

function showView(name) {
  for (const one of ['draw', 'history', 'gallery']) {
    $(`${one}-view`).hidden = one !== name;
    $(`${one}-tab`).ariaCurrent = one === name ? 'page' : null;
  }
}

/** Show what the address names: a view, or a picture, or the last one asked for. */
function route(isRestored = false) {
  const name = new URLSearchParams(location.hash.slice(1)).get('view');
  if (name === 'gallery') { showView(name); gallery.openGallery(); return; }
  if (name === 'history') { showView(name); openHistory(); return; }
  showView('draw');
  const named = wantedIn(location.hash);
  fillForm(named.prompt ? named : wantedIn(kept.get('form')));
  const isShown = view.wanted && hashOf(view.wanted) === hashOf(readForm());
  const isLeft = view.wanted && !named.prompt; // back from another view
  if (isRestored || isShown || isLeft || isUnfinished(view)) return;
  const job = jobOf(readForm());
  if (job) show(job);
  else queue.lookUp();
}

/** Draw what an entry of the history names; in a new tab, it is only looked up. */
function drawAgain(event) {
  const link = event.target.closest('a');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const wanted = wantedIn(link.hash);
  showView('draw');
  fillForm(wanted);
  queue.draw(wanted);
  $('stage').focus({ preventScroll: true });
}

// --- keys and buttons

function pressKey(event) {
  const isTyping = event.target.closest?.('input, textarea, select, dialog');
  if (event.key === 'Escape' && !event.target.closest?.('dialog')) queue.stop();
  const isOff = event.repeat || !$('shortcuts')?.checked || $('draw-view').hidden || isTyping;
  if (isOff || event.ctrlKey || event.metaKey || event.altKey || event.key.toLowerCase() !== 'n') return;
  event.preventDefault(); // or the letter would land in a field that gets the focus
  queue.drawAnother();
}

function pressKeyInPrompt(event) {
  // While Chinese is composed, Enter takes the word (229 is how Safari says so).
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== 229) queue.submitForm(event);
}

function changeForm({ target, type }) {
  $('prompt').setCustomValidity('');
  if (target === $('prompt') && type === 'input') queue.dropSeed();
  showModelField();
  kept.set('form', hashOf(readForm()));
  shapeFrame();
}

function retry() {
  if (isToBeChanged(view.error)) $('prompt').focus();
  else queue.retry(view);
}

/** Show or hide the settings above the bar, on a narrow screen. */
function toggleSettings() {
  const button = $('toggle-settings');
  button.ariaExpanded = String(button.ariaExpanded !== 'true');
}

function search() {
  clearTimeout(search.timer);
  search.timer = setTimeout(gallery.reload, 250);
}

function forget() {
  queue.stopAll();
  refuseKey();
  session.set('token', null);
  show({ state: 'key' });
  $('gallery').replaceChildren();
  if (!$('gallery-view').hidden) gallery.openGallery();
  say(t('forgotten'));
}

// --- language and theme

const prefersDark = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (kept.get('theme') ?? (prefersDark.matches ? 'dark' : 'light')) === 'dark';

function setTheme() {
  document.documentElement.dataset.theme = kept.get('theme') ?? 'system';
  $('theme').ariaPressed = isDark();
}

function toggleTheme() {
  const isToBeDark = !isDark();
  // Back at what the system has, the page follows the system again.
  kept.set('theme', isToBeDark === prefersDark.matches ? null : isToBeDark ? 'dark' : 'light');
  setTheme();
}

function changeLanguage() {
  setLanguage(language === 'zh' ? 'en' : 'zh');
  kept.set('language', language);
}

const LISTENERS = {
  'draw-form': { submit: queue.submitForm, input: changeForm, change: changeForm },
  prompt: { keydown: pressKeyInPrompt },
  'new-seed': { click: queue.drawAnother },
  variants: { click: queue.drawVariants },
  siblings: { click: showSiblings },
  'toggle-settings': { click: toggleSettings },
  'key-form': { submit: queue.saveKey },
  'change-key': { click: changeKey },
  'keep-key': { click: keepKey },
  stop: { click: queue.stop },
  retry: { click: retry },
  enlarge: { click: () => enlarge($('picture').src, $('picture').alt) },
  copy: { click: copySigned },
  'copy-picture': { click: copyPicture },
  'take-over': { click: () => takeOver(view.signed.final_prompt) },
  expiry: { change: signAgain },
  extension: { change: changeExtension },
  history: { click: drawAgain },
  'empty-history': { click: emptyHistory },
  'gallery-form': { submit: gallery.saveToken },
  search: { input: search },
  order: { change: gallery.reload },
  'by-model': { input: search },
  since: { change: gallery.reload },
  until: { change: gallery.reload },
  'select-all': { click: selectAll },
  redraw: { click: redrawSelected },
  save: { click: () => saveCards(chosen()) },
  more: { click: gallery.loadMore },
  gallery: { change: showSelection, click: selectRange },
  unselect: { click: unselect },
  delete: { click: deleteSelected },
  forget: { click: forget },
  'open-preferences': { click: () => $('preferences').showModal() },
  theme: { click: toggleTheme },
  language: { click: changeLanguage },
  shortcuts: { change: () => kept.set('shortcuts', $('shortcuts').checked ? null : 'off') },
  // Not by the address, which says what is drawn.
  skip: { click: (event) => { event.preventDefault(); $('main').focus(); } },
};
for (const [id, listeners] of Object.entries(LISTENERS)) {
  for (const [type, listener] of Object.entries(listeners)) $(id).addEventListener(type, listener);
}
document.addEventListener('keydown', pressKey);
prefersDark.addEventListener('change', setTheme);
addEventListener('hashchange', () => route());
$('extension').checked = kept.get('extension') !== null;
$('shortcuts').checked = kept.get('shortcuts') !== 'off';
// A telephone has none of these keys.
if (matchMedia('(pointer: coarse)').matches) for (const hint of document.querySelectorAll('.keys')) hint.remove();
setTheme();
setLanguage(language);
fillKeyLine();
route(queue.restoreQueue());
loadModels();
countDrawings();
