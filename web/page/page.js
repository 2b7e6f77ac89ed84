// The page at `/`: draws, shows how the picture came, copies links to it, and lists the cache.
// What comes from a person or a server becomes text, never HTML.
'use strict';

// Every text in English and Chinese, named by data-text, data-label, … in the HTML.
const TEXTS = {
  skip: ['Skip to the content', '跳到内容'],
  views: ['Views', '视图'],
  gallery: ['Gallery', '图库'],
  dark: ['Dark', '深色'],
  prompt: ['Prompt', '提示词'],
  'prompt.example': ['a red apple on a windowsill, morning light', '窗台上的红苹果，清晨的光'],
  'prompt.hint': ['Enter draws, Shift + Enter starts a new line.', '按 Enter 绘图，Shift + Enter 换行。'],
  'prompt.needed': ['Write what you want to see.', '请写下你想看到的画面。'],
  size: ['Size', '尺寸'],
  'size.auto': ['The backend’s choice', '由后端决定'],
  'size.square': ['Square, 1024 × 1024', '方形，1024 × 1024'],
  'size.landscape': ['Landscape, 1024 × 768', '横向，1024 × 768'],
  'size.portrait': ['Portrait, 768 × 1024', '纵向，768 × 1024'],
  'size.wide': ['Wide, 1280 × 720', '宽屏，1280 × 720'],
  'size.own': ['Custom size', '自定义'],
  width: ['Width', '宽'],
  height: ['Height', '高'],
  model: ['Model', '模型'],
  'model.auto': ['default', '默认'],
  'model.rule': ['Letters, digits and . _ : / @ + -', '字母、数字和 . _ : / @ + -'],
  seed: ['Seed', '种子'],
  'seed.rule': ['A whole number of at most 18 digits', '不超过 18 位的整数'],
  'seed.is': ['seed {seed}', '种子 {seed}'],
  options: ['More', '更多'],
  'options.hint': ['A backend that does not know one of these draws without it.', '后端不认识的参数会被忽略。'],
  quality: ['Quality', '质量'],
  'quality.example': ['high', 'high'],
  style: ['Style', '风格'],
  'style.example': ['vivid', 'vivid'],
  background: ['Background', '背景'],
  'background.example': ['transparent', 'transparent'],
  negative_prompt: ['Negative prompt', '反向提示词'],
  'negative_prompt.example': ['text, watermark', '文字、水印'],
  draw: ['Draw', '绘图'],
  another: ['Another', '换一张'],
  'another.hint': ['Another: the same prompt with a new seed.', '换一张：提示词不变，换一个新种子。'],
  picture: ['Picture', '图片'],
  key: ['Access key', '访问密钥'],
  'key.title': ['Enter the access key', '请先输入访问密钥'],
  'key.note': [
    'Asked once. It stays in this browser and never appears in a URL.',
    '只需输入一次。密钥保存在此浏览器中，绝不写进网址。',
  ],
  'key.wrong': ['This key was not accepted. Please check it.', '密钥不正确，请检查后重新输入。'],
  'key.keep': ['Save', '保存'],
  empty: ['Your picture will appear here.', '图片会显示在这里。'],
  waiting: ['Being drawn', '正在绘制'],
  'waiting.still': ['Still being drawn: {time}', '仍在绘制：{time}'],
  'waiting.note': ['If you cancel, the server still goes on, and keeps the picture.', '取消后，服务器仍会画完并保存图片。'],
  cancel: ['Cancel', '取消'],
  cancelled: ['Cancelled. Draw again later: it may be ready by then.', '已取消。稍后再绘图，也许已经画好了。'],
  'how.cache': ['From the cache, in {time}', '来自缓存，用时 {time}'],
  'how.backend': ['Drawn by a backend, in {time}', '由后端绘制，用时 {time}'],
  'how.rewritten': ['Refused at first; rewritten and drawn, in {time}', '起初被拒绝，改写后绘制，用时 {time}'],
  'how.fallback': ['Drawn by the fallback, in {time}', '由备用服务绘制，用时 {time}'],
  'how.hosted': ['From its image host, in {time}', '来自图床，用时 {time}'],
  'how.other': ['Here after {time}', '用时 {time}'],
  seconds: ['{n} s', '{n} 秒'],
  milliseconds: ['{n} ms', '{n} 毫秒'],
  stages: ['Stages', '经过'],
  'stage.optimise': ['optimise', '优化'],
  'stage.generate': ['draw', '绘制'],
  'stage.rewrite': ['rewrite', '改写'],
  'stage.fallback': ['fallback', '备用'],
  'stage.upload': ['upload', '上传'],
  'outcome.refused': ['refused', '被拒绝'],
  'outcome.rejected': ['rejected', '被退回'],
  'outcome.failed': ['failed', '失败'],
  copy: ['Copy', '复制'],
  'copy.markdown': ['Copy Markdown', '复制 Markdown'],
  'copy.html': ['Copy HTML', '复制 HTML'],
  'copy.url': ['Copy URL', '复制 URL'],
  'copy.note': ['Signed for this picture, without the key.', '已为此图片签名，不含密钥。'],
  'copy.this': ['Copy Markdown: {prompt}', '复制 Markdown：{prompt}'],
  'copy.done': ['Copied', '已复制'],
  'copy.failed': ['This could not be copied.', '复制失败。'],
  'error.says': ['The service says:', '服务返回：'],
  'error.retry': ['Try again', '重试'],
  'error.edit': ['Change the prompt', '修改提示词'],
  'error.wait': ['You can try again in {time}', '{time} 后可以重试'],
  'error.ready': ['You can try again now.', '现在可以重试了。'],
  'error.operator': [
    'Waiting does not help: whoever runs the service has to fix it. /status or the log says why.',
    '等待没有用，需要服务的管理者来解决。原因见 /status。',
  ],
  'error.until': [
    'This is remembered until {time}. An administrator can clear it: POST /cache/delete or flask cache delete.',
    '此结果会记住到 {time}。管理员可以清除它：POST /cache/delete 或 flask cache delete。',
  ],
  'error.0': ['The service cannot be reached. Is the network there?', '无法连接到服务，请检查网络。'],
  'error.400': ['Something in the prompt or the settings is not right.', '提示词或设置有误。'],
  'error.414': ['The prompt is too long. Shorten it, and draw again.', '提示词太长，请缩短后再绘图。'],
  'error.422': ['Moderation refused this prompt. Say it in other words.', '提示词未通过审核，请换一种说法。'],
  'error.limit': [
    'Today’s limit of this key is reached. Pictures drawn before are still served.',
    '此密钥今天的绘图次数已用完。已画好的图片仍可查看。',
  ],
  'error.429': ['You have asked very often. Wait a moment.', '请求过于频繁，请稍等片刻。'],
  'error.502': ['No backend could draw it.', '没有后端能完成绘制。'],
  'error.503': ['Not just now: the service needs a moment.', '服务暂时无法绘制，请稍候。'],
  'error.504': ['It took too long: no picture came in time.', '绘制超时，没有及时得到图片。'],
  'error.other': ['Something went wrong. The service’s log says what.', '出错了，原因见服务的日志。'],
  token: ['Admin token', '管理令牌'],
  'token.title': ['The gallery is for the administrator', '图库仅供管理员使用'],
  'token.note': [
    'It shows every prompt, and can delete. The token is kept until this tab closes.',
    '它显示所有提示词，并可删除图片。令牌只保留到关闭此标签页。',
  ],
  'token.open': ['Open', '打开'],
  'token.401': ['This token was not accepted. Please check it.', '令牌不正确，请检查后重新输入。'],
  'token.403': ['No ADMIN_TOKEN is set here, so nobody can look.', '此服务未设置 ADMIN_TOKEN，无人可以查看。'],
  'gallery.title': ['In the cache', '缓存中的图片'],
  'gallery.empty': ['Nothing yet. What you draw will be here.', '还没有图片。你画的会出现在这里。'],
  'gallery.none': ['No prompt contains “{q}”.', '没有提示词包含“{q}”。'],
  'gallery.shown': ['Pictures shown: {count}', '已显示 {count} 张图片'],
  'gallery.more': ['Show more', '加载更多'],
  search: ['Search prompts', '搜索提示词'],
  'card.final': ['Final prompt', '最终提示词'],
  'card.by': ['Drawn by {name}', '绘制者：{name}'],
  'card.lost': ['Its prompt is not known yet', '尚不知道它的提示词'],
  'card.open': ['Open: {prompt}', '打开：{prompt}'],
  delete: ['Delete', '删除'],
  'delete.this': ['Delete: {prompt}', '删除：{prompt}'],
  'delete.done': ['Deleted', '已删除'],
  'delete.gone': ['It was gone already', '它已经不在了'],
  'confirm.title': ['Delete this picture?', '删除这张图片？'],
  'confirm.note': ['Whoever asks for it next has it drawn, and paid for, again.', '下次有人请求时，将重新绘制并产生费用。'],
  'confirm.no': ['Keep it', '保留'],
  kept: ['Your key is kept in this browser, the admin token in this tab.', '密钥保存在此浏览器中，管理令牌只在此标签页中。'],
  forget: ['Forget both', '清除两者'],
  forgotten: ['Key and token are forgotten.', '密钥和令牌已清除。'],
  shortcuts: ['The key N draws another', '按 N 键换一张'],
};

// Why a stage failed, in Chinese; the words themselves are English.
const REASONS = {
  unauthorised: '未授权', 'out of credit': '额度用尽', 'not found': '地址不存在', 'unknown model': '没有此模型',
  'rate limited': '请求过多', rejected: '被退回', rejecting: '接连退回', unreachable: '无法连接',
  'bad certificate': '证书无效', 'timed out': '超时', down: '出现故障', 'not a picture': '返回的不是图片',
  'unreadable answer': '响应无法读取', 'answer too large': '响应过大', 'forbidden URL': '图片地址不被允许',
  'cooling down': '冷却中', refused: '被拒绝', 'no message': '没有回答', 'no prompt': '没有给出提示词',
};

const $ = (id) => document.getElementById(id);
const isStill = matchMedia('(prefers-reduced-motion: reduce)');
const isNarrow = matchMedia('(max-width: 60rem)');
const prefersDark = matchMedia('(prefers-color-scheme: dark)');

// --- what the browser keeps

/** A storage; where the browser forbids one, what is kept lasts as long as the page. */
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
const kept = keeper('localStorage');
const session = keeper('sessionStorage'); // for the admin token, which reads and deletes everything

// --- language, theme, words

let language = kept.get('language') ?? (navigator.language.startsWith('zh') ? 'zh' : 'en');

function t(name, values = {}) {
  return TEXTS[name][language === 'zh' ? 1 : 0].replace(/\{(\w+)\}/g, (_, value) => values[value]);
}

function localise(part) {
  for (const node of part.querySelectorAll('[data-text]')) node.textContent = t(node.dataset.text);
  for (const [name, attribute] of [['label', 'aria-label'], ['placeholder', 'placeholder'], ['title', 'title']]) {
    for (const node of part.querySelectorAll(`[data-${name}]`)) node.setAttribute(attribute, t(node.dataset[name]));
  }
}

function setLanguage(chosen) {
  document.documentElement.lang = language = chosen;
  const [textContent, lang] = chosen === 'zh' ? ['English', 'en'] : ['中文', 'zh'];
  Object.assign($('language'), { textContent, lang });
  localise(document);
  localise($('card').content);
  show(view);
  $('gallery').replaceChildren(...entries.map(makeCard));
  describeGallery();
}

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

const inSeconds = (seconds, digits = 1) => t('seconds', { n: seconds.toFixed(digits) });
const duration = (seconds) => (seconds < 1 ? t('milliseconds', { n: Math.round(seconds * 1000) }) : inSeconds(seconds));
const weight = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

function age(created) {
  const seconds = Math.max(0, Date.now() / 1000 - created);
  const units = [['day', 86400], ['hour', 3600], ['minute', 60], ['second', 1]];
  const [unit, size] = units.find((one) => seconds >= one[1]) ?? units[3];
  return new Intl.RelativeTimeFormat(language, { numeric: 'auto' }).format(-Math.floor(seconds / size), unit);
}

/** Say it to a screen reader, and to everybody unless it is to be seen elsewhere anyway. */
function say(text, isSeenElsewhere = false) {
  clearTimeout(say.timer);
  $('status').classList.toggle('unseen', isSeenElsewhere);
  $('status').textContent = ''; // or the same words twice would be read out once
  requestAnimationFrame(() => { $('status').textContent = text; });
  say.timer = setTimeout(() => { $('status').textContent = ''; }, 6000);
}

// --- the server

// A header is bytes: what is beyond ASCII goes as its UTF-8, which is what the server compares.
const asHeader = (text) => String.fromCharCode(...new TextEncoder().encode(text ?? ''));
const withKey = () => ({ Authorization: `Bearer ${asHeader(kept.get('key'))}` });
const withToken = () => ({ 'X-Admin-Token': asHeader(session.get('token')) });

/** Fetch from our own server. Throws an error with a `status`, or without where nobody answered. */
async function ask(path, options) {
  // no-cache: the browser may have kept the picture, but not how it comes this time.
  // manual: a redirect leads to an image host, where a script of ours may not look.
  const response = await fetch(path, { cache: 'no-cache', redirect: 'manual', ...options });
  if (response.ok || response.type === 'opaqueredirect') return response;
  const { detail, stages, remedy, remembered, until } = await response.json().catch(() => ({})); // a proxy may say it in HTML
  const retryAfter = Number(response.headers.get('Retry-After')) || 0;
  const about = { status: response.status, stages, remedy, remembered, until, retryAfter };
  throw Object.assign(new Error(detail), about);
}

function post(path, credentials, body) {
  const headers = { 'Content-Type': 'application/json', ...credentials };
  return ask(path, { method: 'POST', headers, body: JSON.stringify(body) });
}

// --- what is wanted: the URL's parameters as texts, without those not given

const OPTIONS = ['quality', 'style', 'background', 'negative_prompt'];

function wantedFrom(values) {
  const names = ['prompt', 'width', 'height', 'model', 'seed', ...OPTIONS];
  const pairs = names.map((name) => [name, (values[name] ?? '').trim()]);
  return Object.fromEntries(pairs.filter(([, value]) => value).map(([name, value]) => [name, value.toWellFormed()]));
}

function readForm() {
  const { value } = $('size');
  const [width, height] = value === 'own' ? [$('width').value, $('height').value] : value.split('x');
  const written = ['prompt', 'model', 'seed', ...OPTIONS].map((name) => [name, $(name).value]);
  return wantedFrom({ ...Object.fromEntries(written), width, height });
}

function fillForm({ prompt = '', width = '', height = '', model = '', seed = '42', ...options }) {
  const size = width || height ? `${width}x${height}` : '';
  $('size').value = size;
  if ($('size').value !== size) $('size').value = 'own';
  // One side alone is a square, but another picture than that with both sides.
  if (size) [$('width').value, $('height').value] = [width, height];
  [$('prompt').value, $('model').value, $('seed').value] = [prompt, model, seed];
  for (const name of OPTIONS) $(name).value = options[name] ?? '';
  if (OPTIONS.some((name) => options[name])) $('options').open = true; // what counts is to be seen
  shapeFrame();
}

/** Let the empty frame have the shape that the picture will have. */
function shapeFrame() {
  const isOwn = $('size').value === 'own';
  $('own-size').hidden = !isOwn;
  $('own-size').disabled = !isOwn;
  const { width, height } = readForm();
  setShape($('frame'), Number(width || height) || 1024, Number(height || width) || 1024);
}

function setShape(node, width, height) {
  node.style.setProperty('--ratio', width / height);
  node.style.setProperty('--natural', `${width}px`);
}

const hashOf = (wanted) => `#${new URLSearchParams(wanted)}`;
const addressOf = ({ prompt, ...rest }) => `prompt/${encodeURIComponent(prompt)}?${new URLSearchParams(rest)}`;

// --- drawing

let view = { state: 'empty' };
let running = null; // the AbortController of the drawing that is waited for
let ticker;

/** Show a state of the stage: key, empty, waiting, done or failed. */
function show(next) {
  view = next;
  $('stage').dataset.state = view.state;
  const focused = document.activeElement;
  for (const part of $('stage').querySelectorAll('[data-in]')) {
    part.hidden = !part.dataset.in.split(' ').includes(view.state);
  }
  // Where the focus is hidden, the keyboard would start at the top of the page again.
  if ($('stage').contains(focused) && focused.closest('[hidden]')) focusStage();
  for (const id of ['draw', 'new-seed']) $(id).ariaDisabled = view.state === 'waiting';
  $('empty').textContent = t(view.text ?? 'empty');
  $('key-wrong').textContent = view.isWrong ? t('key.wrong') : '';
  if (view.state === 'done') fillCaption(view);
  if (view.state === 'failed') fillError(view.error);
  clearInterval(ticker);
  if (view.state === 'waiting' || view.retryAt) ticker = setInterval(tick, 100);
  tick();
}

function focusStage() {
  $('stage').focus({ preventScroll: true });
  if (isNarrow.matches) $('stage').scrollIntoView({ behavior: isStill.matches ? 'auto' : 'smooth' });
}

/** Count the seconds up while it is drawn, and down where one has to wait. */
function tick() {
  if (view.state === 'waiting') {
    const seconds = (performance.now() - view.began) / 1000;
    $('seconds').textContent = inSeconds(seconds, isStill.matches ? 0 : 1);
    if (seconds < view.sayAt) return;
    view.sayAt += 15;
    say(t('waiting.still', { time: inSeconds(seconds, 0) }), true);
  } else if (view.state === 'failed') {
    const left = Math.max(0, Math.ceil((view.retryAt - performance.now()) / 1000));
    $('countdown').hidden = !left;
    $('retry').hidden = Boolean(left);
    $('countdown').textContent = t('error.wait', { time: inSeconds(left, 0) });
    if (left || !view.retryAt) return;
    view.retryAt = 0;
    clearInterval(ticker);
    say(t('error.ready'), true);
  }
}

/** Show the picture, drawn now if it has to be. `isHit`: it is known to be in the cache. */
async function draw(wanted, isHit = false) {
  if (running) return;
  if (location.hash !== hashOf(wanted)) history[isHit ? 'replaceState' : 'pushState'](null, '', hashOf(wanted));
  if (!kept.get('key')) { askForKey(wanted); return; }
  const run = running = new AbortController();
  const began = performance.now();
  show({ state: 'waiting', wanted, began, sayAt: 15 });
  say(t('waiting'), true);
  try {
    const { response, isLate } = await askUntilDrawn(wanted, run.signal);
    const signed = sign(wanted);
    await hang(response.type === 'opaqueredirect' ? (await signed).url : await blobOf(response), run);
    if (running !== run) return;
    const seconds = (performance.now() - began) / 1000;
    const how = howItCame(response, isHit);
    if (isLate && how.source === 'cache') how.source = 'other'; // drawn for this view all the same
    show({ state: 'done', wanted, signed, seconds, ...how });
    say($('how').textContent, true);
  } catch (error) {
    if (running === run) fail(error, wanted);
  } finally {
    if (running === run) running = null;
  }
}

/** Ask again as long as the service says that the drawing goes on (ANSWER_WITHIN). */
async function askUntilDrawn(wanted, signal) {
  for (let isLate = false; ; isLate = true) {
    try {
      return { response: await ask(addressOf(wanted), { headers: withKey(), signal }), isLate };
    } catch (error) {
      if (error.remedy !== 'reload') throw error;
      await new Promise((resolve) => { setTimeout(resolve, error.retryAfter * 1000); });
    }
  }
}

async function blobOf(response) {
  // The browser takes a prompt of two dots for the folder above, which is this page.
  if (!response.headers.get('Content-Type')?.startsWith('image/')) throw Object.assign(new Error(), { status: 400 });
  return URL.createObjectURL(await response.blob());
}

async function hang(source, run) {
  if (running !== run) return;
  const picture = $('picture');
  if (picture.src.startsWith('blob:')) URL.revokeObjectURL(picture.src);
  picture.src = source;
  await picture.decode().catch(() => { throw Object.assign(new Error(), { status: 502 }); });
  setShape(picture, picture.naturalWidth, picture.naturalHeight);
}

/** Read `PromptImageProxy; hit` or `…; fwd=miss; detail=backend`, and the stages with their times. */
function howItCame({ type, headers }, isHit = false) {
  if (type === 'opaqueredirect') return { source: 'hosted', stages: [] };
  const status = (headers.get('Cache-Status') ?? '').split(',').find((one) => one.includes('PromptImageProxy')) ?? '';
  if (isHit || /;\s*hit\b/.test(status)) return { source: 'cache', stages: [] };
  const source = /;\s*detail=(\w+)/.exec(status)?.[1];
  const timing = (headers.get('Server-Timing') ?? '').matchAll(/([\w-]+);dur=([\d.]+)(?:;desc="(\w*)")?/g);
  const stages = [...timing].map(([, stage, dur, outcome]) => ({ stage, outcome, seconds: dur / 1000 }));
  return { source: `how.${source}` in TEXTS ? source : 'other', stages };
}

function fillCaption({ wanted, source, stages, seconds }) {
  const { naturalWidth, naturalHeight } = $('picture');
  $('picture').alt = $('title').textContent = wanted.prompt;
  const options = OPTIONS.filter((name) => wanted[name]).map((name) => `${t(name)}: ${wanted[name]}`);
  const facts = [`${naturalWidth} × ${naturalHeight}`, wanted.model, ...options, t('seed.is', wanted)];
  $('facts').textContent = facts.filter(Boolean).join(' · ');
  $('how').textContent = t(`how.${source}`, { time: duration(seconds) });
  $('how').dataset.source = source;
  fillStages($('stages'), stages);
}

function fillStages(list, stages) {
  list.hidden = !stages.length;
  list.replaceChildren(...stages.map(({ stage, outcome, seconds, why = outcome }) => {
    const words = [`stage.${stage}`, `outcome.${outcome}`].filter((one) => one in TEXTS).map((one) => t(one));
    const reasons = why === outcome ? [] : [`(${reasonsOf(why)})`];
    const item = document.createElement('li');
    item.textContent = [...words, ...reasons, duration(seconds)].join(' ');
    item.dataset.outcome = outcome;
    item.style.flexGrow = Math.max(seconds, 0.001);
    return item;
  }));
}

function reasonsOf(why) {
  return language === 'zh' ? why.split(', ').map((word) => REASONS[word] ?? word).join('、') : why;
}

// --- when it does not come

const NOT_AGAIN = [400, 413, 414, 422, 431]; // unchanged, it would fail again

function fail(error, wanted) {
  const isWaitingUseful = error.retryAfter && (error.remedy ?? 'wait') === 'wait';
  const retryAt = isWaitingUseful ? performance.now() + error.retryAfter * 1000 : 0;
  if (error.status === 401) askForKey(wanted, true);
  else show({ state: 'failed', error, wanted, retryAt });
}

function errorText({ status = 0, remedy }) {
  if (remedy === 'tomorrow') return t('error.limit');
  const name = `error.${{ 413: 414, 431: 414 }[status] ?? status}`;
  return t(name in TEXTS ? name : 'error.other');
}

function fillError(error) {
  const { remedy, remembered, until, stages = [] } = error;
  const detail = error.status && !stages.length ? error.message : '';
  $('error').dataset.status = error.status ?? 0;
  $('error-text').textContent = errorText(error);
  $('error-says').hidden = !detail;
  $('error-detail').textContent = detail;
  $('retry').textContent = t(NOT_AGAIN.includes(error.status) ? 'error.edit' : 'error.retry');
  $('error-help').textContent = remedy === 'operator' ? t('error.operator') : '';
  const isToBeTold = until && (remembered || !error.retryAfter); // else it is over in seconds
  const time = isToBeTold && new Date(until).toLocaleString(language);
  $('error-memory').textContent = isToBeTold ? t('error.until', { time }) : '';
  fillStages($('error-stages'), stages);
}

function retry() {
  if (NOT_AGAIN.includes(view.error.status)) $('prompt').focus();
  else draw(view.wanted);
}

function askForKey(wanted, isWrong = false) {
  if (isWrong) kept.set('key', null);
  show({ state: 'key', wanted, isWrong });
  $('key').focus();
}

function keepKey(event) {
  event.preventDefault();
  kept.set('key', $('key').value.trim());
  $('key').value = '';
  if (view.wanted) draw(view.wanted);
  else lookUp();
}

function cancel() {
  if (!running) return;
  running.abort();
  running = null;
  show({ state: 'empty', text: 'cancelled' });
  say(t('cancelled'), true);
}

function submitForm(event) {
  event?.preventDefault();
  if (running) return;
  const wanted = readForm();
  $('prompt').setCustomValidity(wanted.prompt ? '' : t('prompt.needed'));
  if (!$('draw-form').reportValidity()) return;
  kept.set('form', hashOf(wanted));
  draw(wanted);
  // Out of the field, so that N is a key again; on a telephone the picture comes into sight.
  if (running && (document.activeElement === $('prompt') || isNarrow.matches)) focusStage();
}

function drawAnother() {
  if (running) return;
  $('seed').value = Math.floor(Math.random() * 1e6);
  submitForm();
}

/** Show what the form says if it is in the cache: a link by itself must never spend money. */
async function lookUp() {
  if (!kept.get('key')) { show({ state: 'key' }); return; }
  show({ state: 'empty' });
  const wanted = readForm();
  try {
    const response = await ask(addressOf({ prompt: 'x', ...wanted }), { method: 'HEAD', headers: withKey() });
    const isHit = howItCame(response).source !== 'other';
    if (isHit && wanted.prompt && view.state === 'empty') draw(wanted, true);
  } catch (error) {
    if (error.status === 401) askForKey(null, true);
  }
}

// --- copying

function sign({ prompt, ...rest }) {
  const signed = post('sign', withKey(), { description: prompt, ...rest }).then((response) => response.json());
  signed.catch(() => {}); // told when it is asked for
  return signed;
}

async function copySigned({ target: { dataset } }) {
  if (!dataset.copy) return;
  try {
    // Signed when the picture came: Safari forbids copying long after the click.
    const signed = await view.signed.catch(() => (view.signed = sign(view.wanted)));
    copy(signed[dataset.copy]);
  } catch (error) {
    if (error.status === 401) askForKey(view.wanted, true);
    else say(t('copy.failed'));
  }
}

async function copy(text) {
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

// --- the gallery

let entries = [];
let following = null; // where the next page begins
let loading = null;
const watcher = new IntersectionObserver(
  (seen) => seen.some((one) => one.isIntersecting) && load(following), { rootMargin: '600px' },
);

function openGallery(wrong = '') {
  const hasToken = Boolean(session.get('token'));
  $('gallery-form').hidden = hasToken;
  $('gallery-content').hidden = !hasToken;
  $('token-wrong').textContent = wrong;
  if (hasToken) load();
  else $('admin-token').focus();
}

function keepToken(event) {
  event.preventDefault();
  session.set('token', $('admin-token').value.trim());
  $('admin-token').value = '';
  openGallery();
  $('search').focus();
}

/** List the cache from its newest entry, or go on `before` where the last page ended. */
async function load(before = null) {
  loading?.abort();
  loading = new AbortController();
  watcher.disconnect();
  const query = new URLSearchParams({ q: $('search').value.trim(), limit: 24, ...(before && { before }) });
  try {
    const page = await (await ask(`cache?${query}`, { headers: withToken(), signal: loading.signal })).json();
    following = page.next;
    hangCards(page.entries, Boolean(before));
    if (following) watcher.observe($('more'));
  } catch (error) {
    if (error.name !== 'AbortError') failGallery(error);
  }
}

function hangCards(found, isMore = false) {
  const cards = found.map(makeCard);
  entries = isMore ? [...entries, ...found] : found;
  $('gallery')[isMore ? 'append' : 'replaceChildren'](...cards);
  if (document.activeElement === $('more')) cards[0]?.querySelector('a').focus();
  describeGallery();
  say(t('gallery.shown', { count: entries.length }), true);
}

function describeGallery(failure = '') {
  const q = $('search').value.trim();
  $('gallery-note').textContent = failure || (entries.length ? '' : t(q ? 'gallery.none' : 'gallery.empty', { q }));
  $('more').textContent = t(failure ? 'error.retry' : 'gallery.more');
  $('more').hidden = !following && !failure;
}

function failGallery(error) {
  if (![401, 403].includes(error.status)) { describeGallery(errorText(error)); return; }
  session.set('token', null);
  openGallery(t(`token.${error.status}`));
}

function makeCard(entry) {
  const card = $('card').content.firstElementChild.cloneNode(true);
  const part = (selector) => card.querySelector(selector);
  const prompt = entry.prompt ?? t('card.lost');
  if (entry.url) {
    // Its numbers come out of the URL: a seed of 18 digits is more than a JSON number holds.
    const asked = Object.fromEntries(new URL(entry.url, location).searchParams);
    part('.open').href = hashOf(wantedFrom({ ...asked, prompt }));
    part('.open').ariaLabel = t('card.open', { prompt });
    Object.assign(part('img'), { src: entry.url, alt: prompt });
  } else hangByKey(part('img'), entry.key);
  const isChanged = entry.final_prompt && entry.final_prompt !== entry.prompt;
  const [width, height] = [entry.width ?? entry.height, entry.height ?? entry.width]; // one side: a square
  const size = width ? `${width} × ${height} · ` : '';
  part('.prompt').textContent = prompt;
  part('.final').textContent = entry.final_prompt;
  part('details').hidden = !isChanged;
  part('.size').textContent = size + weight(entry.bytes);
  part('time').textContent = age(entry.created);
  part('time').dateTime = new Date(entry.created * 1000).toISOString();
  part('.by').textContent = entry.drawn_by ? t('card.by', { name: entry.drawn_by.replace(/^https?:\/\//, '') }) : '';
  const act = (action, label, work) => {
    part(`[data-action="${action}"]`).ariaLabel = t(label, { prompt });
    part(`[data-action="${action}"]`).addEventListener('click', work);
  };
  act('copy', 'copy.this', () => copy(entry.markdown));
  act('delete', 'delete.this', () => askToDelete(entry, card));
  part('[data-action="copy"]').hidden = !entry.markdown;
  return card;
}

/** Show a picture that has no URL yet, since nobody has asked for it since it was imported. */
async function hangByKey(image, key) {
  const response = await ask(`cache/${key}`, { headers: withToken() }).catch(() => null);
  if (!response?.ok) { image.remove(); return; }
  image.src = URL.createObjectURL(await response.blob());
  image.onload = () => URL.revokeObjectURL(image.src);
}

function askToDelete(entry, card) {
  const dialog = $('confirm-delete');
  $('confirm-prompt').textContent = entry.prompt ?? t('card.lost');
  dialog.returnValue = '';
  dialog.onclose = () => dialog.returnValue === 'delete' && remove(entry, card);
  dialog.showModal();
}

async function remove(entry, card) {
  const error = await post('cache/delete', withToken(), { key: entry.key }).then(() => null, (reason) => reason);
  if (error && error.status !== 404) { failGallery(error); return; }
  const neighbour = card.nextElementSibling ?? card.previousElementSibling;
  card.remove();
  entries = entries.filter((one) => one !== entry);
  (neighbour?.querySelector('[data-action="delete"]') ?? $('search')).focus();
  describeGallery();
  say(t(error ? 'delete.gone' : 'delete.done'));
}

// --- where one is, and what one presses

/** Show what the address names: the gallery, or a picture, or the last one asked for. */
function route() {
  const named = new URLSearchParams(location.hash.slice(1));
  const isGallery = named.get('view') === 'gallery';
  for (const [name, isShown] of [['draw', !isGallery], ['gallery', isGallery]]) {
    $(`${name}-view`).hidden = !isShown;
    $(`${name}-tab`).ariaCurrent = isShown ? 'page' : null;
  }
  if (isGallery) { openGallery(); return; }
  const last = new URLSearchParams(kept.get('form')?.slice(1));
  fillForm(Object.fromEntries(named.has('prompt') ? named : last));
  const isShown = view.wanted && hashOf(view.wanted) === hashOf(readForm());
  if (!running && !isShown) lookUp();
}

function forget() {
  cancel();
  kept.set('key', null);
  session.set('token', null);
  hangCards([]);
  show({ state: 'key' });
  if (!$('gallery-view').hidden) openGallery();
  say(t('forgotten'));
}

function pressKey(event) {
  if (event.key === 'Escape') cancel();
  const isTyping = event.target.closest?.('input, textarea, select, dialog');
  const isOff = !$('shortcuts').checked || $('draw-view').hidden || isTyping;
  if (isOff || event.ctrlKey || event.metaKey || event.altKey || event.key.toLowerCase() !== 'n') return;
  event.preventDefault(); // or the letter would land in a field that gets the focus
  drawAnother();
}

function pressKeyInPrompt(event) {
  // While Chinese is composed, Enter takes the word (229 is how Safari says so).
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== 229) submitForm(event);
}

function changeForm() {
  $('prompt').setCustomValidity('');
  kept.set('form', hashOf(readForm()));
  shapeFrame();
}

function changeLanguage() {
  setLanguage(language === 'zh' ? 'en' : 'zh');
  kept.set('language', language);
}

function search() {
  clearTimeout(search.timer);
  search.timer = setTimeout(() => load(), 250);
}

/** Let the favicon be the page's own logo: one drawing, and no file of its own. */
function setIcon() {
  const logo = new Blob([new XMLSerializer().serializeToString($('logo'))], { type: 'image/svg+xml' });
  document.head.append(Object.assign(document.createElement('link'), { rel: 'icon', href: URL.createObjectURL(logo) }));
}

const LISTENERS = {
  'draw-form': { submit: submitForm, input: changeForm, change: changeForm },
  prompt: { keydown: pressKeyInPrompt },
  'new-seed': { click: drawAnother },
  'key-form': { submit: keepKey },
  cancel: { click: cancel },
  retry: { click: retry },
  copy: { click: copySigned },
  'gallery-form': { submit: keepToken },
  search: { input: search },
  more: { click: () => load(following) },
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
$('shortcuts').checked = kept.get('shortcuts') !== 'off';
setIcon();
setTheme();
setLanguage(language);
route();
