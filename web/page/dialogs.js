// Dialogs: a question, and a picture in full size. Escape closes both, and the focus returns.
import { $ } from './words.js';

/** Ask; `quote` may be empty. Return whether the answer is yes. */
export function confirm({ title, quote = '', note, yes }) {
  const dialog = $('confirm');
  const texts = { 'confirm-title': title, 'confirm-quote': quote, 'confirm-note': note, 'confirm-yes': yes };
  for (const [id, text] of Object.entries(texts)) $(id).textContent = text;
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((resolve) => {
    // The event comes late: the dialog may be open again, with another question.
    dialog.onclose = () => dialog.open || resolve(dialog.returnValue === 'yes');
  });
}

export function enlarge(src, alt) {
  Object.assign($('enlarged'), { src, alt });
  $('full-size').showModal();
}

// Where the picture is larger than the window, its middle comes first.
$('enlarged').addEventListener('load', () => {
  const { scrollWidth, scrollHeight, clientWidth, clientHeight } = $('scroller');
  $('scroller').scrollTo((scrollWidth - clientWidth) / 2, (scrollHeight - clientHeight) / 2);
});
// A click on the picture leads back, too.
$('scroller').addEventListener('click', () => $('full-size').close());
