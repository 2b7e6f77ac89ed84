// Storage in the browser.

/** Wrap a storage. If the browser forbids it, values last as long as the page. */
function keeper(kind) {
  const memory = {};
  const tried = (work) => { try { return work(window[kind]); } catch { return undefined; } };
  return {
    get: (name) => tried((storage) => storage.getItem(`pip.${name}`)) ?? memory[name] ?? null,
    set(name, value) {
      memory[name] = value;
      tried((storage) => (value === null ? storage.removeItem(`pip.${name}`) : storage.setItem(`pip.${name}`, value)));
    },
  };
}

export const kept = keeper('localStorage');
export const session = keeper('sessionStorage'); // for the admin token, which reads and deletes everything
