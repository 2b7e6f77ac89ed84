// The LLM's share of a prompt: which words of the final prompt are not the user's.
import { $, say, t } from './words.js';

const wordsOf = (text) => Array.from(new Intl.Segmenter(undefined, { granularity: 'word' }).segment(text), ({ segment }) => segment);

/** Return the length of the longest common subsequence of every two ends of `a` and `b`. */
function commonLengths(a, b) {
  const width = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      const at = i * width + j;
      lengths[at] = a[i] === b[j] ? lengths[at + width + 1] + 1 : Math.max(lengths[at + width], lengths[at + 1]);
    }
  }
  return (i, j) => lengths[i * width + j];
}

/** Return the final prompt as nodes, with what is new in `ins` elements. */
export function markShare(prompt, final) {
  const [a, b] = [wordsOf(prompt.toLowerCase()), wordsOf(final.toLowerCase())];
  const shown = wordsOf(final);
  const common = commonLengths(a, b);
  const pieces = [];
  for (let i = 0, j = 0; j < b.length;) {
    const isSame = a[i] === b[j];
    if (!isSame && i < a.length && common(i + 1, j) >= common(i, j + 1)) { i += 1; continue; }
    if (pieces.at(-1)?.isSame === isSame) pieces.at(-1).text += shown[j];
    else pieces.push({ isSame, text: shown[j] });
    if (isSame) i += 1;
    j += 1;
  }
  return pieces.map(({ isSame, text }) => (isSame ? text : Object.assign(document.createElement('ins'), { textContent: text })));
}

/** Take the final prompt over into the form; its seed and settings stay. */
export function takeOver(final) {
  $('prompt').value = final;
  $('prompt').dispatchEvent(new Event('change', { bubbles: true }));
  $('prompt').focus();
  say(t('final.taken'));
}
