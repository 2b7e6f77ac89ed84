// Requests to our own server.
import { kept, session } from './kept.js';
import { language } from './words.js';

// A header is bytes: what is beyond ASCII goes as its UTF-8, which is what the server compares.
const asHeader = (text) => String.fromCharCode(...new TextEncoder().encode(text ?? ''));
export const withKey = () => ({ Authorization: `Bearer ${asHeader(kept.get('key'))}` });
export const withToken = () => ({ 'X-Admin-Token': asHeader(session.get('token')) });

/** Fetch from our own server. Throws an error with a `status`, or without one if the service cannot be reached. */
export async function ask(path, { headers, ...options } = {}) {
  // no-cache: the browser may have cached the picture, but its headers differ this time.
  // manual: a redirect leads to an image host, where a script of ours may not look.
  const always = { cache: 'no-cache', redirect: 'manual', headers: { 'Accept-Language': language, ...headers } };
  const response = await fetch(path, { ...always, ...options });
  if (response.ok || response.type === 'opaqueredirect') return response;
  const { detail, stages, remedy, remembered, until } = await response.json().catch(() => ({})); // a proxy may answer in HTML
  const retryAfter = Number(response.headers.get('Retry-After')) || 0;
  const about = { status: response.status, stages, remedy, remembered, until, retryAfter };
  throw Object.assign(new Error(detail), about);
}

export const askJson = async (path, options) => (await ask(path, options)).json();

export function post(path, credentials, body) {
  const headers = { 'Content-Type': 'application/json', ...credentials };
  return askJson(path, { method: 'POST', headers, body: JSON.stringify(body) });
}

/** Return a picture's signed links and its final prompt. `options`: `expires_in` in seconds, and `extension`. */
export function sign({ prompt, ...rest }, options) {
  const signed = post('sign', withKey(), { description: prompt, ...rest, ...options });
  signed.catch(() => {}); // reported where it is awaited
  return signed;
}
