// The form, and what is wanted: the URL's parameters as texts, without those not given.
import { $ } from './words.js';

export const OPTIONS = ['quality', 'style', 'background', 'negative_prompt'];
const NAMES = ['prompt', 'width', 'height', 'model', 'seed', ...OPTIONS];
const OWN = 'own';
const OTHER = '?'; // no model's name

export function wantedFrom(values) {
  const pairs = NAMES.map((name) => [name, (values[name] ?? '').trim()]);
  return Object.fromEntries(pairs.filter(([, value]) => value).map(([name, value]) => [name, value.toWellFormed()]));
}

/** Return what an address's fragment asks for. */
export const wantedIn = (hash) => wantedFrom(Object.fromEntries(new URLSearchParams(hash?.slice(1))));

export const hashOf = (wanted) => `#${new URLSearchParams(wanted)}`;
// An extension at the end of the path is not part of the prompt: one that ends in one needs another.
const endOf = (prompt) => (/.\.(png|jpe?g|webp|gif)$/is.test(prompt) ? '.png' : '');
export const addressOf = ({ prompt, ...rest }) => `prompt/${encodeURIComponent(prompt)}${endOf(prompt)}?${new URLSearchParams(rest)}`;

const sizes = () => $('draw-form').elements.size;

export function readForm() {
  const size = sizes().value;
  const [width, height] = size === OWN ? [$('width').value, $('height').value] : size.split('x');
  const written = ['prompt', 'seed', ...OPTIONS].map((name) => [name, $(name).value]);
  return wantedFrom({ ...Object.fromEntries(written), model: readModel(), width, height });
}

export function fillForm({ prompt = '', width = '', height = '', model = '', seed = '42', ...options }) {
  const size = width || height ? `${width}x${height}` : '';
  const isOffered = [...sizes()].some((one) => one.value === size);
  sizes().value = isOffered ? size : OWN;
  // One side alone is a square, but another picture than that with both sides.
  if (size) [$('width').value, $('height').value] = [width, height];
  [$('prompt').value, $('seed').value] = [prompt, seed];
  fillModel(model);
  for (const name of OPTIONS) $(name).value = options[name] ?? '';
  if (OPTIONS.some((name) => options[name])) $('options').open = true; // what counts is to be seen
  shapeFrame();
}

// --- models: a choice of those that the service offers, a field for any other

const isFieldUsed = () => $('offered').hidden || $('offered').value === OTHER;
const readModel = () => (isFieldUsed() ? $('model') : $('offered')).value;

function fillModel(model) {
  $('model').value = model;
  $('offered').value = [...$('offered').options].some((one) => one.value === model) ? model : OTHER;
  showModelField();
}

export function showModelField() {
  $('model').hidden = $('model').disabled = !isFieldUsed();
}

export function offerModels(names) {
  const model = readModel();
  const [auto, other] = [$('offered').options[0], [...$('offered').options].at(-1)];
  $('offered').replaceChildren(auto, ...names.map((name) => new Option(name, name)), other);
  $('offered').hidden = !names.length;
  fillModel(model);
}

// --- shapes

/** Let the empty frame have the shape that the picture will have. */
export function shapeFrame() {
  const isOwn = sizes().value === OWN;
  $('own-size').hidden = $('own-size').disabled = !isOwn;
  const { width, height } = readForm();
  setShape($('frame'), Number(width || height) || 1024, Number(height || width) || 1024);
  if (isOwn) $('shapes').style.setProperty('--own', Math.min(4, Math.max(0.25, width / height || 1)));
}

export function setShape(node, width, height) {
  node.style.setProperty('--ratio', width / height);
  node.classList.toggle('tall', width <= height);
  node.style.setProperty('--natural', `${width}px`);
}
