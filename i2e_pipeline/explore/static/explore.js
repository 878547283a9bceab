/* Pages work without this; it adds hits while typing, scrolled lists, keys, stories and marks. All text is set as text. */
const $ = (query, from = document) => from.querySelector(query);
const all = (query, from = document) => [...from.querySelectorAll(query)];
const made = (tag, text = "", name = "") => {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (name) element.className = name;
  return element;
};
const say = (text) => { $("#said").textContent = text; };
const asked = async (url, options) => {
  const answer = await fetch(url, options);
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error || answer.statusText);
  return told;
};
const number = (n) => n.toLocaleString("en");

/* Entities while typing: a combobox with a list (ARIA APG). `chosen` gets the entity. */
let boxes = 0;
function combobox(input, list, chosen) {
  list.id ||= `others-${boxes++}`;
  input.setAttribute("aria-controls", list.id);
  let hits = [], at = -1, latest = 0;
  const close = () => { latest += 1; list.hidden = true; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); at = -1; };
  const mark = (n) => {
    at = n;
    all("li", list).forEach((li, i) => li.setAttribute("aria-selected", String(i === n)));
    const li = list.children[n];
    if (li) { input.setAttribute("aria-activedescendant", li.id); li.scrollIntoView({ block: "nearest" }); }
    else input.removeAttribute("aria-activedescendant");
  };
  const show = (found) => {
    hits = found;
    list.replaceChildren(...hits.map((hit, n) => {
      const li = made("li");
      li.id = `${list.id || "others"}-${n}`;
      li.setAttribute("role", "option");
      li.setAttribute("aria-selected", "false");
      li.append(made("b", hit.name), " ", made("span", `Q${hit.entity_id}`, "soft"), made("span", hit.description || "", "soft what"), made("span", `${number(hit.images)}`, "count"));
      li.addEventListener("pointerdown", (event) => { event.preventDefault(); close(); chosen(hit); });
      return li;
    }));
    if (!hits.length) { list.replaceChildren(made("li", "nothing is called so", "none")); }
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    mark(-1);
    say(hits.length ? `${hits.length} entities` : "nothing is called so");
  };
  input.addEventListener("input", async () => {
    const turn = ++latest, typed = input.value.trim();
    if (!typed) return close();
    try {
      const found = await asked(`/api/hits?q=${encodeURIComponent(typed)}`);
      if (turn === latest) show(found);
    } catch (error) { say(String(error.message)); }
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { close(); event.stopPropagation(); }
    if (list.hidden || !hits.length) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      mark((at + (event.key === "ArrowDown" ? 1 : at < 0 ? 0 : -1) + hits.length) % hits.length);
    }
    if (event.key === "Enter" && at >= 0) { event.preventDefault(); const hit = hits[at]; close(); chosen(hit); }
  });
  input.addEventListener("blur", close);
}
combobox($("#find"), $("#hits"), (hit) => { location.href = `/entities/Q${hit.entity_id}`; });

/* A list of images that is as long as it says, of which only what is seen exists. */
function scrolled(list) {
  const source = new URL(list.dataset.source, location.href), names = "names" in list.dataset;
  const start = Number(list.dataset.offset), total = Math.min(Number(list.dataset.total) - start, Number(list.dataset.window));
  if (total <= list.children.length) return;
  const first = list.children[0].getBoundingClientRect(), gap = 12, most = 240, height = first.height + gap;
  const rows = new Map();
  const filled = (row, n) => {
    const li = made("li", "", "card");
    li.dataset.n = n;
    li.setAttribute("aria-setsize", total);
    li.setAttribute("aria-posinset", n + 1);
    if (!row) { li.setAttribute("aria-busy", "true"); return li; }
    const link = made("a"), frame = made("span", "", "frame"), image = made("img"), says = made("span", "", "says");
    link.href = `/images/${row.image_id}`;
    Object.assign(image, { src: `/images/${row.image_id}/picture`, alt: row.alt_text || row.mention || "", loading: "lazy", width: 160, height: 160 });
    says.append(made("b", (names ? row.name || `Q${row.entity_id}` : row.mention) || ""), " ", made("span", row.score.toFixed(2), "score"));
    frame.append(image);
    link.append(frame, says, made("span", row.alt_text || "", "alt"));
    li.append(link);
    return li;
  };
  /* A list that is longer than one scrolls through goes on by as much. */
  const whole = Number(list.dataset.total), window_ = Number(list.dataset.window), pager = list.parentElement.querySelector(".pager");
  if (pager) {
    pager.hidden = whole <= window_ && !start;
    const to = (link, offset) => { const url = new URL(link.href, location.href); if (offset > 0) url.searchParams.set("offset", offset); else url.searchParams.delete("offset"); link.href = url; };
    const [before, after] = [$("[rel=prev]", pager), $("[rel=next]", pager)];
    if (before) to(before, start - window_);
    if (after) { if (start + window_ < whole) to(after, start + window_); else after.hidden = true; }
    $("span", pager).textContent = `${number(start + 1)}–${number(start + total)} of ${number(whole)}`;
  }
  let low = 0, high = 0, resting = 0, asking = null, goal = null;
  const ask = async () => {
    const missing = Array.from({ length: high - low }, (_, i) => low + i).filter((n) => !rows.has(n));
    if (!missing.length) return;
    asking?.abort();
    asking = new AbortController();
    source.searchParams.set("offset", start + missing[0]);
    source.searchParams.set("most", Math.min(most, missing.at(-1) - missing[0] + 1));
    try {
      const told = await asked(source, { signal: asking.signal });
      told.rows.forEach((row, i) => rows.set(missing[0] + i, row));
      for (const n of rows.keys()) { if (rows.size <= 3000) break; if (n < low || n >= high) rows.delete(n); }
      $(".note.failed", list.parentElement)?.remove();
      render();
    } catch (error) { if (error.name !== "AbortError") fail(list.parentElement, error); }
  };
  const atFocus = () => { const li = document.activeElement?.closest?.("li.card"); return li && list.contains(li) ? Number(li.dataset.n) : null; };
  const render = () => {
    const wanted = goal ?? atFocus(), to = goal !== null;
    const there = new Map(all(":scope > li:not([aria-busy])", list).map((li) => [Number(li.dataset.n), li]));
    list.replaceChildren(...Array.from({ length: high - low }, (_, i) => there.get(low + i) || filled(rows.get(low + i), low + i)));
    const link = wanted === null ? null : $(`li[data-n="${wanted}"] a`, list);
    if (link) { goal = null; link.focus({ preventScroll: !to }); }
  };
  const draw = () => {
    const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length, lines = Math.ceil(total / columns);
    const top = list.getBoundingClientRect().top;
    let from = Math.max(0, Math.floor(-top / height) - 2), to = Math.min(lines, Math.ceil((innerHeight - top) / height) + 2);
    from = Math.min(from, lines - 1);
    /* What has the focus stays, while the page scrolls to it. */
    const kept = goal ?? atFocus(), line = kept === null ? from : Math.floor(kept / columns);
    if (goal !== null || (line > from - 40 && line < to + 40)) { from = Math.min(from, line); to = Math.max(to, line + 1); }
    list.style.paddingTop = `${from * height}px`;
    list.style.minHeight = `${lines * height}px`;
    const [l, h] = [from * columns, Math.min(total, Math.max(from + 1, to) * columns)];
    if (l !== low || h !== high || goal !== null) { low = l; high = h; render(); }
    clearTimeout(resting);
    resting = setTimeout(ask, rows.has(low) && rows.has(high - 1) ? 0 : 60);
  };
  all(":scope > li", list).forEach((li, n) => { li.dataset.n = n; li.setAttribute("aria-setsize", total); li.setAttribute("aria-posinset", n + 1); });
  let waiting = false;
  const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
  addEventListener("scroll", soon, { passive: true });
  addEventListener("resize", soon);
  list.go = (n) => { goal = n; draw(); };
  list.total = total;
  draw();
}
all("ul.grid[data-source]").forEach(scrolled);

/* Arrows go from image to image. */
document.addEventListener("keydown", (event) => {
  const here = event.target.closest?.("ul.grid > li");
  if (!here || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(event.key)) return;
  const list = here.parentElement, items = all(":scope > li", list);
  const row = items.filter((li) => li.offsetTop === here.offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row }[event.key];
  event.preventDefault();
  if (list.go) { const to = Number(here.dataset.n) + steps; if (to >= 0 && to < list.total) list.go(to); }
  else $("a", items[items.indexOf(here) + steps] || here)?.focus();
});

/* Parts that are asked for when the page is there. */
for (const part of all("[data-load]"))
  fetch(part.dataset.load).then(async (answer) => {
    const text = await answer.text();
    const page = new DOMParser().parseFromString(text, "text/html");
    const inner = $("main", page) || page.body;
    part.replaceChildren(...[...inner.childNodes].map((node) => document.importNode(node, true)));
    if (location.hash) $(CSS.escape ? `#${CSS.escape(location.hash.slice(1))}` : location.hash, part)?.scrollIntoView();
  }, () => { part.append(made("p", "could not be asked", "note")); });

/* Marks. */
const put = (image_id, entity_id, mark, other = null, drawn = false) =>
  asked("/api/marks", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ image_id, entity_id, mark, other, drawn }) });
/* The form that asks which other entity an image shows; `given` gets its number, or null. */
function otherForm(form, given) {
  const field = $("input", form);
  let other = null;
  combobox(field, $("ul", form), (hit) => { other = hit.entity_id; field.value = `${hit.name} (Q${hit.entity_id})`; });
  field.addEventListener("input", () => { other = null; });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = field.value.trim(), written = typed.match(/^[Qq]?(\d+)$/);
    if (typed && !other && !written) { say("choose one of the list, or write a Q-id"); return; }
    form.hidden = true;
    given(typed ? (other ?? Number(written[1])) : null);
  });
  form.ask = () => { form.hidden = false; field.focus(); };
}
const keys = { r: "right", w: "wrong", o: "other", u: "unsure" };
/* What could not be done, where the reader looks. */
const fail = (where, error) => { say(error.message); $(".note.failed", where)?.remove(); where.append(made("p", error.message, "note failed")); };
const typing = (event) => event.target.closest?.("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey;

const image = $("article.image");
if (image) {
  const done = [];
  const mark = async (label, kind, other) => {
    const button = $(`[data-mark="${kind}"]`, label);
    const taken = button.getAttribute("aria-pressed") === "true";
    if (kind === "other" && !taken && other === undefined) { $("form.other", label).ask(); return; }
    try {
      await put(image.dataset.image, Number(label.dataset.entity), taken ? "cleared" : kind, taken ? null : other ?? null);
      all("[data-mark]", label).forEach((b) => b.setAttribute("aria-pressed", String(b === button && !taken)));
      done.push(label);
      say(taken ? "mark taken back" : `marked ${kind}`);
    } catch (error) { fail(label, error); }
  };
  for (const label of all(".label", image)) {
    otherForm($("form.other", label), (other) => mark(label, "other", other));
    for (const button of all("[data-mark]", label)) button.addEventListener("click", () => mark(label, button.dataset.mark));
  }
  document.addEventListener("keydown", (event) => {
    if (typing(event)) return;
    const label = document.activeElement.closest?.(".label") || $(".label", image);
    if (keys[event.key]) mark(label, keys[event.key]);
    if (event.key === "z" && done.length) {
      const last = done.pop(), pressed = $('[aria-pressed="true"]', last);
      if (pressed) mark(last, pressed.dataset.mark);
    }
  });
}

const marking = $("#marking");
if (marking) {
  const queue = [], before = [];
  let now = null, left = 0, of = 0;
  const key = (row) => `${row.image_id}:${row.entity_id}`;
  /* Marks are sent one after the other, while the next labels are shown: who types fast marks what is seen. */
  let sending = Promise.resolve(), drawing = null;
  const unsent = new Set();
  const more = () => drawing ??= (async () => {
    const held = [...queue, ...(now ? [now] : []), ...unsent];
    const told = await asked(`/api/draw?${held.map((row) => `but=${key(row)}`).join("&")}`);
    const known = new Set([...queue, ...(now ? [now] : []), ...unsent, ...before].map(key));
    queue.push(...told.rows.filter((row) => !known.has(key(row))));
    if (!of) left = told.left;  // from then on the page counts itself: some marks are on their way
    of = told.drawn;
    for (const row of told.rows) new Image().src = `/images/${row.image_id}/picture?side=640`;
  })().finally(() => { drawing = null; });
  const show = () => {
    marking.setAttribute("aria-busy", "false");
    if (!now) { marking.replaceChildren(made("p", of ? "All drawn labels are marked." : "There is nothing to mark.", "none")); return; }
    const card = $("#marking-card").content.cloneNode(true);
    const picture = $("img", card);
    picture.src = `/images/${now.image_id}/picture?side=640`;
    picture.alt = now.alt_text || "";
    picture.addEventListener("error", () => picture.replaceWith(made("p", "The image is not at hand any more: its input is gone. Mark it unsure.", "note")));
    const name = $(".name", card);
    name.textContent = now.name || `Q${now.entity_id}`;
    name.href = `/entities/Q${now.entity_id}`;
    $(".qid", card).textContent = `Q${now.entity_id}${now.coarse_type ? ` · ${now.coarse_type}` : ""}`;
    $(".description", card).textContent = now.description || "No description.";
    $(".text", card).textContent = now.alt_text || "";
    for (const button of all("[data-mark]", card)) button.addEventListener("click", () => choose(button.dataset.mark));
    const back = $("[data-back]", card);
    back.disabled = !before.length;
    back.addEventListener("click", undo);
    otherForm($("form.other", card), (other) => given("other", other));
    marking.replaceChildren(made("p", `${number(of - left)} marked · ${number(Math.max(0, left))} left of ${number(of)} drawn`, "soft"), card);
  };
  const next = () => {
    now = queue.shift() || null;
    if (now || (of && left <= 0)) show();
    else { marking.replaceChildren(made("p", "Drawing …", "none")); more().then(() => { if (!now) { now = queue.shift() || null; show(); } }, (error) => fail(marking, error)); }
    if (now && queue.length < 6) more().catch((error) => fail(marking, error));
  };
  const send = (row, mark, other, again) => {
    unsent.add(row);
    sending = sending.then(async () => {
      try { await put(row.image_id, row.entity_id, mark, other, true); }
      catch (error) { again(); show(); fail(marking, error); }
      finally { unsent.delete(row); }
    }).then(implied);
  };
  const given = (mark, other = null) => {
    const row = now;
    before.push(row);
    left -= 1;
    say(`marked ${mark}`);
    next();
    send(row, mark, other, () => { before.splice(before.indexOf(row), 1); if (now) queue.unshift(now); now = row; left += 1; });
  };
  const choose = (mark) => {
    if (mark !== "other") return given(mark);
    $("form.other", marking).ask();
  };
  const undo = () => {
    const row = before.pop();
    if (!row) return;
    if (now) queue.unshift(now);
    now = row;
    left += 1;
    say("mark taken back");
    show();
    send(row, "cleared", null, () => { before.push(row); queue.unshift(row); now = queue.shift(); left -= 1; });
  };
  const percent = (x) => `${(100 * x).toFixed(1)} %`;
  const implied = async () => {
    const box = $("#implied"), lines = [];
    let told;
    try { told = await asked("/api/implied"); } catch (error) { box.replaceChildren(made("p", error.message, "note")); return; }
    for (const [name, what, where] of [["precision", "of the published labels are right", told.labels], ["recall", "of the right candidates are published", null]]) {
      const figure = told[name];
      if (!figure) continue;
      const line = made("p");
      if (figure.missing) line.append(made("b", name), ` — ${figure.missing} more marks, and it can be said.`);
      else if (figure.value !== undefined) {
        line.append(made("b", `${name} ${percent(figure.value)}`), `: between ${percent(figure.low)} and ${percent(figure.high)} (95 %) ${what}${where ? `, ${number(where)} of them` : ""}.`);
        if (figure.unsure_low !== figure.unsure_high) line.append(made("span", ` The unsure ones could make it ${percent(figure.unsure_low)} to ${percent(figure.unsure_high)}.`, "soft"));
      } else continue;
      lines.push(line);
    }
    lines.push(made("p", `${told.marks} drawn labels are decided, ${told.unsure} unsure${told.by_eye ? `, ${told.by_eye} marked on their own pages, which do not count here` : ""}.${told.expected_precision ? ` By their probabilities ${percent(told.expected_precision)} would be right.` : ""}`, "soft"));
    box.replaceChildren(...lines);
  };
  document.addEventListener("keydown", (event) => {
    if (typing(event)) return;
    if (keys[event.key] && now) { event.preventDefault(); choose(keys[event.key]); }
    if (event.key === "z") undo();
  });
  more().then(() => { next(); implied(); }, (error) => { marking.replaceChildren(made("p", error.message, "note")); });
}

document.addEventListener("keydown", (event) => {
  if (typing(event)) return;
  if (event.key === "/") { event.preventDefault(); $("#find").focus(); }
  if (event.key === "m") location.href = "/mark";
});

/* A picture that cannot be shown says so where it would stand; its text stays. */
document.addEventListener("error", (event) => {
  if (event.target.tagName !== "IMG" || event.target.closest("#marking")) return;
  event.target.replaceWith(made("span", event.target.alt ? `no picture: ${event.target.alt}` : "no picture", "none"));
}, true);
