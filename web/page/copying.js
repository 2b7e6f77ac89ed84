// Copying a text, also where the browser makes it hard.
import { say, t } from './words.js';

export async function copy(text) {
  const isCopied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  say(t(isCopied || copyByCommand(text) ? 'copy.done' : 'copy.failed'));
}

/** Copy where navigator.clipboard is missing: on plain http, as in a home network. */
function copyByCommand(text) {
  const focused = document.activeElement;
  const area = Object.assign(document.createElement('textarea'), { value: text, className: 'unseen' });
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand('copy');
  area.remove();
  focused.focus();
  return isCopied;
}
