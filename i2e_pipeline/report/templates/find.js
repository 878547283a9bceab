{
  // search.py folds keys the same way.
  const fold = (text) => {
    const plain = text.normalize("NFKD").replace(/\p{M}+/gu, "").toLowerCase().replaceAll("ς", "σ");
    const words = plain.replace(/[^\p{L}\p{N}]+/gu, " ").trim() || plain.replace(/[\p{Z}\s]+/gu, " ").trim();
    return [...words].slice(0, {{ find_key }}).join("");
  };
  const box = document.getElementById("find"), list = document.getElementById("find-hits");
  const said = document.getElementById("find-said"), found = document.getElementById("found");
  const index = JSON.parse(document.getElementById("find-index").textContent);
  const count = (number) => number.toLocaleString("en");
  const score = (value) => (value === null ? "–" : value.toFixed(3));
  const add = (parent, tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return parent.appendChild(made);
  };

  // [key, row, alias]: what may be typed, in one order for rows of this page and for those of the folder beside it.
  const keyOf = (row) => {
    const of = row[7];
    if (of === -1) return [`q${row[0]}`, row, ""];
    return typeof of === "string" ? [fold(of), row, of] : [fold(row[1]).split(" ").slice(of).join(" "), row, ""];
  };
  const keysOf = (row) => {
    const words = fold(row[1]).split(" ").slice(0, 4).map((_, n, all) => [...row.slice(0, 7), n]);
    return [...words, [...row.slice(0, 7), -1], ...row[7].map((alias) => [...row.slice(0, 7), alias])].map(keyOf);
  };
  let inside = null;
  const files = new Map(), waiting = new Map();
  window.entitiesFound = (name, content) => waiting.get(name)(content);
  const load = (name) => {
    if (!files.has(name))
      files.set(name, new Promise((done, fail) => {
        const script = document.createElement("script");
        waiting.set(name, done);
        script.src = `${index.folder}/${name}.js`;
        script.onerror = () => { files.delete(name); script.remove(); fail(new Error(index.folder)); };
        document.head.append(script);
      }));
    return files.get(name);
  };
  // By code points, as the pages are sorted; < goes by halves of surrogate pairs.
  const compare = (a, b) => {
    const x = [...a], y = [...b];
    for (let n = 0; n < x.length && n < y.length; n++)
      if (x[n] !== y[n]) return x[n].codePointAt(0) - y[n].codePointAt(0);
    return x.length - y.length;
  };
  const keys = async (wanted) => {
    if (index.rows) return (inside ??= index.rows.flatMap(keysOf));
    if (Object.hasOwn(index.tops, wanted)) return (await load(`t${index.tops[wanted]}`))[wanted].map(keyOf);
    const firsts = index.firsts;
    let low = 0, high = firsts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (compare(firsts[middle], wanted) < 0) low = middle + 1; else high = middle;
    }
    const pages = new Set(firsts.length ? [Math.max(0, low - 1)] : []);
    for (; low < firsts.length && firsts[low].startsWith(wanted); low++) pages.add(low);
    return (await Promise.all([...pages].map((n) => load(`p${n}`)))).flat().map(keyOf);
  };
  // What is typed whole first, then by images, then by id; an entity once, by its name rather than by an alias.
  const hits = async (wanted) => {
    const best = new Map();
    for (const [key, row, alias] of await keys(wanted)) {
      if (!key.startsWith(wanted)) continue;
      const before = best.get(row[0]), whole = key === wanted;
      if (!before || (whole && !before.whole) || (whole === before.whole && before.alias && !alias))
        best.set(row[0], { whole, row, alias });
    }
    return [...best.values()].sort((a, b) => b.whole - a.whole || b.row[4] - a.row[4] || a.row[0] - b.row[0]);
  };

  let shown = [], active = -1, asked = 0;
  const close = () => { list.hidden = true; active = -1; mark(); box.setAttribute("aria-expanded", "false"); };
  const mark = () => {
    [...list.children].forEach((option, n) => option.setAttribute("aria-selected", String(n === active)));
    if (active < 0) box.removeAttribute("aria-activedescendant");
    else {
      box.setAttribute("aria-activedescendant", list.children[active].id);
      list.children[active].scrollIntoView({ block: "nearest" });
    }
  };
  const facts = (row) => `${row[3] ? `${row[3]} · ` : ""}${count(row[4])} image${row[4] === 1 ? "" : "s"} · probability ${score(row[5])} · CLIP ${score(row[6])}`;
  const show = async () => {
    const wanted = fold(box.value), turn = ++asked;
    if (!wanted) { close(); said.textContent = ""; return; }
    let all;
    try { all = await hits(wanted); } catch {
      if (turn !== asked) return;
      close();
      said.textContent = `The search needs the folder ${index.folder.split("/")[0]}, which lies beside report.html in the output and is not here: copy it, too.`;
      return;
    }
    if (turn !== asked) return;
    const top = !index.rows && Object.hasOwn(index.tops, wanted);
    shown = all.slice(0, {{ find_shown }});
    list.replaceChildren();
    shown.forEach(({ row, alias }, n) => {
      const option = add(list, "li");
      option.id = `find-hit-${n}`;
      option.setAttribute("role", "option");
      const line = add(option, "span", undefined, "hit-name");
      add(line, "b", row[1]);
      add(line, "span", ` Q${row[0]}`, "muted");
      if (alias) add(line, "span", ` · also ${alias}`, "muted");
      if (row[2]) add(option, "span", row[2], "hit-about");
      add(option, "span", facts(row), "hit-facts");
      option.addEventListener("click", () => choose(n));
    });
    active = -1;
    mark();
    list.hidden = !shown.length;
    list.scrollTop = 0;
    box.setAttribute("aria-expanded", String(shown.length > 0));
    said.textContent = !all.length ? `No published entity has a name, an alias or a Q-id that begins with “${box.value.trim()}”.`
      : top ? `The ${shown.length} with the most images of many; type more of the name.`
      : all.length > shown.length ? `${shown.length} of ${count(all.length)}, those with the most images first.`
      : `${all.length} ${all.length === 1 ? "entity" : "entities"}.`;
  };
  const choose = (n) => {
    const { row } = shown[n];
    close();
    found.replaceChildren();
    const head = add(found, "h3", `${row[1]} `), link = add(head, "a", `Q${row[0]}`);
    link.href = `https://www.wikidata.org/wiki/Q${row[0]}`;
    link.rel = "noreferrer";
    if (row[2]) add(found, "p", row[2]);
    const facts = add(found, "dl");
    for (const [name, value] of [["kind", row[3] || "not known"], ["images", count(row[4])],
      ["mean probability", score(row[5])], ["mean CLIP score", score(row[6])]]) {
      const pair = add(facts, "div");
      add(pair, "dt", name);
      add(pair, "dd", value);
    }
    const command = add(found, "code", `i2e entity Q${row[0]} --config ${found.dataset.settings}`, "why");
    command.title = "what the knowledge base knows of it: click, and copy";
    if (document.getElementById(`e${row[0]}`)) {
      const here = add(add(found, "p", "", "here"), "a", "Its images on this page");
      here.href = `#e${row[0]}`;
    }
    found.hidden = false;
  };
  box.addEventListener("input", show);
  box.addEventListener("focus", () => { if (box.value && list.hidden && found.hidden) show(); });
  box.addEventListener("blur", close);
  list.addEventListener("pointerdown", (event) => event.preventDefault());
  box.addEventListener("keydown", (event) => {
    const last = shown.length - 1;
    if (event.key === "Escape" && !list.hidden) { event.preventDefault(); close(); }
    else if (event.key === "ArrowDown" && list.hidden) { event.preventDefault(); show(); }
    else if (!list.hidden && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      active = event.key === "ArrowDown" ? (active >= last ? 0 : active + 1) : (active <= 0 ? last : active - 1);
      mark();
    } else if (!list.hidden && event.key === "Enter") { event.preventDefault(); choose(Math.max(0, active)); }
  });
  box.disabled = false;
}
