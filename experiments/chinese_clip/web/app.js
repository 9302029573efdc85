// The page: sends a text, a picture or the number of a result, and shows what comes back.
// Everything that comes from files or people is put in as text, never as markup.
"use strict";

const STRINGS = {
  zh: {
    title: "图片搜索", label: "用中文描述要找的图片", placeholder: "用中文描述要找的图片，如：海边的日落",
    search: "搜索", upload: "以图搜图", uploadTitle: "选择、拖入或粘贴一张图片", results: "结果",
    pages: "分页", previous: "上一页", next: "下一页", similar: "找相似图片", close: "关闭",
    drop: "松开即可以图搜图", keys: "按 / 输入，方向键选图，回车找相似，O 放大",
    working: "搜索中…", all: (n) => `全部 ${n} 张图片`, page: (a, b) => `第 ${a} / ${b} 页`,
    found: (q, n, ms) => `“${q}”：按相似度排列的 ${n} 张图片，用时 ${ms} 毫秒`,
    like: (name) => `与 ${name} 相似的图片`, none: "没有图片可显示", cosine: (x) => `余弦 ${x}`,
    match: (x) => `匹配 ${x}`, above: (x) => `高于背景 ${x}`, open: (name) => `放大 ${name}`,
    pick: (name) => `找与 ${name} 相似的图片`, uploaded: "上传的图片", gone: "图片已不在原处",
    unsure: (x) => `可能没有真正符合的图片：最高匹配概率只有 ${x}`,
    info: (n, model) => `${n} 张图片 · 模型 ${model}`,
    errors: {
      empty_query: "请输入要找的内容", query_too_long: "文字太长，请缩短后再试",
      too_large: "图片文件太大", not_an_image: "这不是能读取的图片", too_many_pixels: "图片尺寸太大",
      unsupported_type: "请选择图片文件", no_text_tower: "此模型只有图像部分，不能用文字搜索",
      network: "连不上搜索服务：它可能已经停止", other: "出错了",
    },
  },
  en: {
    title: "Picture search", label: "Describe the picture in Chinese",
    placeholder: "Describe the picture in Chinese: 海边的日落", search: "Search", upload: "By picture",
    uploadTitle: "Choose, drop or paste a picture", results: "Results", pages: "Pages",
    previous: "Previous", next: "Next", similar: "Find similar", close: "Close",
    drop: "Drop to search by this picture",
    keys: "/ to type, arrows to move, Enter for similar, O to enlarge",
    working: "Searching…", all: (n) => `All ${n} pictures`, page: (a, b) => `Page ${a} of ${b}`,
    found: (q, n, ms) => `“${q}”: ${n} pictures by similarity, ${ms} ms`,
    like: (name) => `Pictures like ${name}`, none: "No pictures to show", cosine: (x) => `cosine ${x}`,
    match: (x) => `match ${x}`, above: (x) => `above ${x}`, open: (name) => `Enlarge ${name}`,
    pick: (name) => `Find pictures like ${name}`, uploaded: "your picture", gone: "Picture is gone",
    unsure: (x) => `Perhaps nothing fits: the best match has a probability of ${x}`,
    info: (n, model) => `${n} pictures · model ${model}`,
    errors: {
      empty_query: "Type what you are looking for", query_too_long: "The text is too long",
      too_large: "The file is too large", not_an_image: "This is no picture that can be read",
      too_many_pixels: "The picture has too many pixels", unsupported_type: "Choose a picture",
      no_text_tower: "This model has no text tower", other: "Something went wrong",
      network: "The search service does not answer: it may have been stopped",
    },
  },
};

const TEXT = (navigator.language || "zh").toLowerCase().startsWith("zh") ? STRINGS.zh : STRINGS.en;
const LIMIT = 24;
const $ = (id) => document.getElementById(id);
let info = null;
let asked = null; // what is shown: {text} or {row} or {file} or {}, and its page
let request = 0; // only the answer to the last request is shown

function translate() {
  document.documentElement.lang = TEXT === STRINGS.zh ? "zh-CN" : "en";
  document.title = TEXT.title;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = TEXT[node.dataset.text];
  for (const node of document.querySelectorAll("[data-title]")) node.title = TEXT[node.dataset.title];
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", TEXT[node.dataset.label]);
  $("query").placeholder = TEXT.placeholder;
}

function percent(share) {
  const value = 100 * share;
  return `${value >= 99.95 && value < 100 ? value.toFixed(2) : value >= 10 ? value.toFixed(1) : value.toPrecision(2)}%`;
}

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error(TEXT.errors.network);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(TEXT.errors[answer.code] || answer.error || TEXT.errors.other);
  return answer;
}

function send(query) {
  const offset = LIMIT * query.page;
  if (query.file) {
    return call(`/api/search/image?offset=${offset}&limit=${LIMIT}`, {
      method: "POST", headers: { "Content-Type": query.file.type || "application/octet-stream" },
      body: query.file,
    });
  }
  const body = { offset, limit: LIMIT };
  if (query.text !== undefined) body.text = query.text;
  if (query.row !== undefined) body.row = query.row;
  return call("/api/search", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
}

async function show(query, { push = true, focus = false } = {}) {
  const mine = ++request;
  complain(null);
  $("status").textContent = TEXT.working;
  $("results").classList.add("busy");
  try {
    const started = performance.now();
    const answer = await send(query);
    if (mine !== request) return;
    asked = query;
    $("query").value = query.text || "";
    if (push) history.pushState(stateOf(query), "", addressOf(query));
    describe(query, answer, Math.round(performance.now() - started));
    draw(answer.results);
    turn(query.page, answer.total);
    window.scrollTo(0, 0);
    if (focus) document.querySelector(".pick")?.focus();
  } catch (error) {
    if (mine === request) {
      $("status").textContent = "";
      complain(error.message);
    }
  } finally {
    if (mine === request) $("results").classList.remove("busy");
  }
}

function complain(message) {
  $("notice").hidden = !message;
  $("notice").textContent = message || "";
}

function describe(query, answer, ms) {
  const picture = $("about-picture");
  if (picture.src.startsWith("blob:")) URL.revokeObjectURL(picture.src);
  picture.hidden = query.row === undefined && !query.file;
  if (query.row !== undefined) picture.src = `/thumb/${query.row}?v=${info.version}`;
  else if (query.file) picture.src = URL.createObjectURL(query.file);
  else picture.removeAttribute("src");
  if (query.text !== undefined) $("status").textContent = TEXT.found(query.text, answer.total, ms);
  else if (query.row !== undefined) $("status").textContent = TEXT.like(answer.name);
  else if (query.file) $("status").textContent = TEXT.like(query.file.name || TEXT.uploaded);
  else $("status").textContent = TEXT.all(answer.total);
  const best = answer.results[0];
  if (query.page === 0 && best && best.probability !== null && best.probability < 0.5) {
    complain(TEXT.unsure(percent(best.probability)));
  }
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function draw(results) {
  const cards = results.map(card);
  if (!cards.length) cards.push(element("li", { className: "empty", textContent: TEXT.none }));
  $("results").replaceChildren(...cards);
}

function card(result) {
  const picture = element("img", {
    src: `/thumb/${result.row}?v=${info.version}`, alt: result.name, loading: "lazy", decoding: "async",
  });
  const pick = element("button", { type: "button", className: "pick", title: result.path }, picture);
  pick.setAttribute("aria-label", TEXT.pick(result.name));
  pick.addEventListener("click", () => show({ row: result.row, page: 0 }, { focus: true }));
  picture.addEventListener("error", () => {
    pick.classList.add("gone");
    picture.alt = `${result.name} — ${TEXT.gone}`;
  });
  const open = element("button", { type: "button", className: "open", textContent: "⤢" });
  open.setAttribute("aria-label", TEXT.open(result.name));
  open.addEventListener("click", () => enlarge(result));
  pick.result = result;
  const caption = element("div", { className: "caption" },
    element("p", { className: "name", textContent: result.name, title: result.path }));
  if (result.cosine !== null) caption.append(...scores(result));
  return element("li", { className: "card" }, pick, open, caption);
}

function scores(result) {
  const known = result.probability !== null ? TEXT.match(percent(result.probability))
    : result.percentile !== null ? TEXT.above(percent(result.percentile)) : "";
  const fill = element("i");
  fill.style.width = `${100 * Math.min(Math.max(result.cosine, 0), 1)}%`;
  return [
    element("p", { className: "score" }, element("span", { textContent: known }),
      element("span", { textContent: TEXT.cosine(result.cosine.toFixed(3)) })),
    element("div", { className: "bar" }, fill),
  ];
}

function turn(page, total) {
  const pages = Math.max(Math.ceil(total / LIMIT), 1);
  $("pages").hidden = pages < 2;
  $("page").textContent = TEXT.page(page + 1, pages);
  $("previous").disabled = page === 0;
  $("next").disabled = page + 1 >= pages;
}

function enlarge(result) {
  $("viewer-picture").src = `/picture/${result.row}?v=${info.version}`;
  $("viewer-picture").alt = result.name;
  $("viewer-name").textContent = `${result.path} · ${result.width} × ${result.height}`;
  $("viewer-similar").onclick = () => {
    $("viewer").close();
    show({ row: result.row, page: 0 }, { focus: true });
  };
  $("viewer").showModal();
}

function addressOf(query) {
  const values = new URLSearchParams();
  if (query.text !== undefined) values.set("q", query.text);
  if (query.row !== undefined) values.set("like", query.row);
  if (query.page) values.set("page", query.page + 1);
  return values.size ? `/?${values}` : "/";
}

function stateOf(query) {
  return query.file ? { upload: true, page: query.page } : query;
}

function fromAddress() {
  const values = new URLSearchParams(location.search);
  const query = { page: Math.max(Number.parseInt(values.get("page"), 10) || 1, 1) - 1 };
  if (values.get("q")) query.text = values.get("q");
  else if (/^\d+$/.test(values.get("like") || "")) query.row = Number(values.get("like"));
  return query;
}

function byFile(file) {
  if (file.size > info.max_upload) return complain(TEXT.errors.too_large);
  show({ file, page: 0 }, { focus: true });
}

function move(step) {
  const all = [...document.querySelectorAll(".pick")];
  const at = all.indexOf(document.activeElement);
  const to = at < 0 ? 0 : at + step;
  if (all[to]) all[to].focus();
}

function columns() {
  const all = [...document.querySelectorAll(".card")];
  const first = all.findIndex((one) => one.offsetTop !== all[0].offsetTop);
  return first < 0 ? all.length : first;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("viewer").open) return;
  const typing = document.activeElement === $("query");
  if (event.key === "/" && !typing) $("query").focus();
  else if (typing && event.key === "ArrowDown" && document.querySelector(".pick")) move(0);
  else if (typing) return;
  else if (event.key === "ArrowRight") move(1);
  else if (event.key === "ArrowLeft") move(-1);
  else if (event.key === "ArrowDown") move(columns());
  else if (event.key === "ArrowUp") move(-columns());
  else if (event.key.toLowerCase() === "o" && document.activeElement.result) enlarge(document.activeElement.result);
  else return;
  event.preventDefault();
}

async function start() {
  translate();
  try {
    info = await call("/api/info");
  } catch (error) {
    $("status").textContent = "";
    return complain(error.message);
  }
  $("info").textContent = TEXT.info(info.num_pictures, info.model);
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("query").value.trim();
    if (!text) complain(TEXT.errors.empty_query);
    else show({ text, page: 0 });
  });
  $("home").addEventListener("click", (event) => {
    event.preventDefault();
    show({ page: 0 });
  });
  $("upload").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) byFile($("file").files[0]);
    $("file").value = "";
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file) byFile(file);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").hidden = ![...event.dataTransfer.types].includes("Files");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    if (event.dataTransfer.files[0]) byFile(event.dataTransfer.files[0]);
  });
  $("previous").addEventListener("click", () => show({ ...asked, page: asked.page - 1 }));
  $("next").addEventListener("click", () => show({ ...asked, page: asked.page + 1 }));
  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
  $("viewer").addEventListener("close", () => $("viewer-picture").removeAttribute("src"));
  document.addEventListener("keydown", onKey);
  window.addEventListener("popstate", () => {
    show(fromAddress(), { push: false });
  });
  show(fromAddress(), { push: false });
}

start();
