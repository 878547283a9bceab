const value = (row, n) => {
  const text = row.cells[n].textContent.trim(), number = parseFloat(text.replace(/[,%\s]/g, "").replace(/^Q/, ""));
  return Number.isNaN(number) || n === 0 ? text.toLowerCase() : number;
};
for (const table of document.querySelectorAll("table.sortable"))
  for (const head of table.tHead.rows[0].cells)
    head.addEventListener("click", () => {
      const falling = head.dataset.order === "rising" || (!head.dataset.order && head.classList.contains("n"));
      for (const other of table.tHead.rows[0].cells) delete other.dataset.order;
      head.dataset.order = falling && head.dataset.order !== "falling" ? "falling" : "rising";
      const sign = head.dataset.order === "falling" ? -1 : 1, n = head.cellIndex, body = table.tBodies[0];
      [...body.rows].sort((a, b) => {
        const x = value(a, n), y = value(b, n);
        return sign * (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1);
      }).forEach((row) => body.append(row));
    });
for (const input of document.querySelectorAll("input[data-filter]"))
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of document.getElementById(input.dataset.filter).tBodies[0].rows)
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries)
    if (entry.isIntersecting) {
      links.forEach((link) => link.classList.remove("here"));
      links.get(entry.target.id)?.classList.add("here");
    }
}, { rootMargin: "-20% 0px -75% 0px" });
for (const section of document.querySelectorAll("section")) watch.observe(section);
