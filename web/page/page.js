// The page at `/`: draws, shows how the picture came, and lists what was drawn here and what is in the cache.
// What comes from a person or a server becomes text, never HTML.
import { enlarge } from './dialogs.js';
import * as drawing from './drawing.js';
import { isToBeChanged } from './failure.js';
import { fillForm, hashOf, readForm, shapeFrame, showModelField, wantedFrom } from './form.js';
import * as gallery from './gallery.js';
import { emptyHistory, openHistory } from './history.js';
import { kept, session } from './kept.js';
import { deleteSelected, showSelection, unselect } from './selection.js';
import { show, view } from './stage.js';
import { $, language, say, setLanguage, t } from './words.js';

// --- views

const wantedIn = (hash) => wantedFrom(Object.fromEntries(new URLSearchParams(hash?.slice(1))));

function showView(name) {
  for (const one of ['draw', 'history', 'gallery']) {
    $(`${one}-view`).hidden = one !== name;
    $(`${one}-tab`).ariaCurrent = one === name ? 'page' : null;
  }
}

/** Show what the address names: a view, or a picture, or the last one asked for. */
function route() {
  const name = new URLSearchParams(location.hash.slice(1)).get('view');
  if (name === 'gallery') { showView(name); gallery.openGallery(); return; }
  if (name === 'history') { showView(name); openHistory(); return; }
  showView('draw');
  const named = wantedIn(location.hash);
  fillForm(named.prompt ? named : wantedIn(kept.get('form')));
  const isShown = view.wanted && hashOf(view.wanted) === hashOf(readForm());
  if (!drawing.isRunning() && !isShown) drawing.lookUp();
}

/** Draw what an entry of the history names; in a new tab, it is only looked up. */
function drawAgain(event) {
  const link = event.target.closest('a');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  drawing.stop();
  const wanted = wantedIn(link.hash);
  showView('draw');
  fillForm(wanted);
  drawing.draw(wanted);
  $('stage').focus({ preventScroll: true });
}

// --- keys and buttons

function pressKey(event) {
  const isTyping = event.target.closest?.('input, textarea, select, dialog');
  if (event.key === 'Escape' && !event.target.closest?.('dialog')) drawing.stop();
  const isOff = !$('shortcuts')?.checked || $('draw-view').hidden || isTyping;
  if (isOff || event.ctrlKey || event.metaKey || event.altKey || event.key.toLowerCase() !== 'n') return;
  event.preventDefault(); // or the letter would land in a field that gets the focus
  drawing.drawAnother();
}

function pressKeyInPrompt(event) {
  // While Chinese is composed, Enter takes the word (229 is how Safari says so).
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== 229) drawing.submitForm(event);
}

function changeForm() {
  $('prompt').setCustomValidity('');
  showModelField();
  kept.set('form', hashOf(readForm()));
  shapeFrame();
}

function retry() {
  if (isToBeChanged(view.error)) $('prompt').focus();
  else drawing.draw(view.wanted);
}

function search() {
  clearTimeout(search.timer);
  search.timer = setTimeout(gallery.reload, 250);
}

function forget() {
  drawing.stop();
  kept.set('key', null);
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
  'draw-form': { submit: drawing.submitForm, input: changeForm, change: changeForm },
  prompt: { keydown: pressKeyInPrompt },
  'new-seed': { click: drawing.drawAnother },
  'key-form': { submit: drawing.saveKey },
  stop: { click: drawing.stop },
  retry: { click: retry },
  enlarge: { click: () => enlarge($('picture').src, $('picture').alt) },
  copy: { click: drawing.copySigned },
  expiry: { change: drawing.signAgain },
  extension: { change: drawing.changeExtension },
  history: { click: drawAgain },
  'empty-history': { click: emptyHistory },
  'gallery-form': { submit: gallery.saveToken },
  search: { input: search },
  order: { change: gallery.reload },
  more: { click: gallery.loadMore },
  gallery: { change: showSelection },
  unselect: { click: unselect },
  delete: { click: deleteSelected },
  forget: { click: forget },
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
addEventListener('hashchange', route);
$('extension').checked = kept.get('extension') !== null;
$('shortcuts').checked = kept.get('shortcuts') !== 'off';
// A telephone has none of these keys.
if (matchMedia('(pointer: coarse)').matches) for (const hint of document.querySelectorAll('.keys')) hint.remove();
setTheme();
setLanguage(language);
route();
drawing.loadModels();
