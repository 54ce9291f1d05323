"use strict";
// Adds what needs a hand: the page reads and prints without it.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const all = (query, within = document) => [...within.querySelectorAll(query)];

  // ---- tables: header buttons that sort
  const collator = new Intl.Collator("en", { numeric: true });
  const sortBy = (table, column, kind, direction) => {
    const body = table.tBodies[0];
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      if (kind === "text") return direction * collator.compare(value(a), value(b));
      if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
      return direction * (Number(value(a)) - Number(value(b)));
    };
    body.append(...[...body.rows].sort(compare));
  };
  for (const table of all("table.sortable")) {
    const heads = all("th[data-sort]", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sortBy(table, column, head.dataset.sort, ascending ? 1 : -1);
      });
    });
  }

  // ---- images: two panels on top of each other, cut at a divider
  const views = document.getElementById("views");
  if (!views) return;
  const left = document.getElementById("left");
  const right = document.getElementById("right");
  const zoom = document.getElementById("zoom");
  const articles = all(".view", views);

  const setSplit = (article, percent) => {
    const value = Math.min(100, Math.max(0, percent));
    const range = article.querySelector("input[type=range]");
    range.value = value;
    const sides = [left, right].map((select) => select.selectedOptions[0].textContent);
    range.setAttribute("aria-valuetext", `left ${range.value} %: ${sides[0]}, right: ${sides[1]}`);
    article.style.setProperty("--split", `${range.value}%`);
  };
  const showSides = () => {
    for (const article of articles) {
      for (const panel of all(".panel", article)) {
        panel.classList.toggle("is-left", panel.dataset.side === left.value);
        panel.classList.toggle("is-right", panel.dataset.side === right.value);
        panel.hidden = panel.dataset.side !== left.value && panel.dataset.side !== right.value;
      }
      article.querySelector(".left-name").textContent = left.selectedOptions[0].textContent;
      article.querySelector(".right-name").textContent = right.selectedOptions[0].textContent;
      setSplit(article, Number(article.querySelector("input[type=range]").value));
    }
  };
  const showView = (id) => {
    for (const article of articles) article.hidden = article.id !== id;
    for (const radio of all("input[name=view]")) radio.checked = radio.value === id;
  };
  for (const radio of all("input[name=view]")) radio.addEventListener("change", () => showView(radio.value));
  for (const select of [left, right]) select.addEventListener("change", showSides);
  for (const box of all("[data-layer]")) {
    box.addEventListener("change", () => views.classList.toggle(`hide-${box.dataset.layer}`, !box.checked));
  }
  zoom.addEventListener("change", () => views.style.setProperty("--zoom", zoom.value));

  for (const article of articles) {
    const range = article.querySelector("input[type=range]");
    const stage = article.querySelector(".stage");
    const grip = article.querySelector(".divider");
    range.addEventListener("input", () => setSplit(article, Number(range.value)));
    const follow = (event) => {
      const box = stage.getBoundingClientRect();
      setSplit(article, (100 * (event.clientX - box.left)) / box.width);
    };
    grip.addEventListener("pointerdown", (event) => {
      grip.setPointerCapture(event.pointerId);
      grip.addEventListener("pointermove", follow);
      event.preventDefault();
    });
    for (const end of ["pointerup", "pointercancel"]) {
      grip.addEventListener(end, () => grip.removeEventListener("pointermove", follow));
    }
  }
  const follow = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    if (articles.some((article) => article.id === id)) {
      showView(id);
      document.getElementById("images").scrollIntoView();
    }
  };
  addEventListener("hashchange", follow);
  showSides();
  showView(articles[0].id);
  follow();
})();
