const value = (row, n) => {
  const text = row.cells[n].textContent.trim(), number = parseFloat(text.replace(/[,%\s]/g, "").replace(/^Q/, ""));
  return Number.isNaN(number) || n === 0 ? text.toLowerCase() : number;
};
for (const table of document.querySelectorAll("table.sortable"))
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort"), falling = before ? before === "ascending" : head.classList.contains("n");
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const sign = falling ? -1 : 1, n = head.cellIndex, body = table.tBodies[0];
      [...body.rows].sort((a, b) => {
        const x = value(a, n), y = value(b, n);
        return sign * (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1);
      }).forEach((row) => body.append(row));
    });
  }
// What scrolls by itself is reached by keyboard, too.
for (const box of document.querySelectorAll(".scroll")) {
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", [...box.querySelector("thead").rows[0].cells].map((cell) => cell.textContent.trim()).join(", "));
}
const nav = document.querySelector("nav");
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries)
    if (entry.isIntersecting) {
      links.forEach((link) => link.classList.remove("here"));
      const link = links.get(entry.target.id);
      link?.classList.add("here");
      // On a telephone the contents are one line: the part that is read is kept in sight.
      if (link && nav.scrollWidth > nav.clientWidth) nav.scrollLeft = link.offsetLeft - nav.clientWidth / 3;
    }
}, { rootMargin: "-20% 0px -75% 0px" });
for (const section of document.querySelectorAll("section")) watch.observe(section);
