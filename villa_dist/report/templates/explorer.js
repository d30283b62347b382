"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("explorer-data").textContent);
  const form = byId("query"), input = byId("phrase"), found = byId("found"), hits = byId("hits");
  const SIGNS = { right: "✓", wrong: "✗", missed: "○", assigned: "" };
  let current = null;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const set = (node, values) => Object.entries(values).forEach(([name, value]) => node.setAttribute(name, value));
  const copy = (id) => byId(id).content.firstElementChild.cloneNode(true);
  const plural = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;
  const ranking = () => {
    const chosen = form.querySelector("input[name=ranking]:checked");
    return data.rankings[chosen ? Number(chosen.value) : 0];
  };

  function place(svg, image, view) {
    set(svg, { viewBox: view.join(" ") });
    const pixels = svg.querySelector("image");
    set(pixels, { href: image.u, width: image.w, height: image.h });
    pixels.classList.toggle("pixelated", Boolean(image.p));
  }

  /* A square around the box, so that small regions are seen, with what stands beside them. */
  function around([, x, y, w, h], image) {
    const side = Math.min(Math.max(image.w, image.h), Math.max(1.8 * Math.max(w, h), 0.5 * Math.min(image.w, image.h)));
    const start = (centre, size) => (side >= size ? (size - side) / 2 : Math.min(Math.max(centre - side / 2, 0), size - side));
    return [start(x + w / 2, image.w), start(y + h / 2, image.h), side, side];
  }

  function card(hit, rank) {
    const [number, x, y, w, h, score, right] = hit;
    const image = data.images[number], made = copy("hit-template"), button = made.firstElementChild;
    const verdict = right === null ? "" : right ? "right" : "wrong";
    place(button.querySelector("svg"), image, around(hit, image));
    button.querySelectorAll("rect").forEach((rect) => set(rect, { x, y, width: w, height: h }));
    if (verdict) button.classList.add(verdict);
    button.querySelector(".rank").textContent = `${rank}`;
    button.querySelector(".verdict").textContent = verdict ? `${SIGNS[verdict]} ${verdict}` : "";
    button.querySelector(".score").textContent = score.toFixed(2);
    button.setAttribute("aria-label", `Rank ${rank}, ${verdict ? verdict + ", " : ""}score ${score.toFixed(2)}, image ${image.k}: show all its regions`);
    button.addEventListener("click", () => open(image));
    return made;
  }

  function show(query) {
    current = query;
    input.value = query.p;
    const by = ranking(), mine = query.h[by.id] || [];
    hits.replaceChildren(...mine.map((hit, k) => card(hit, k + 1)));
    const judged = mine.filter((hit) => hit[6] !== null), right = judged.filter((hit) => hit[6]).length;
    const value = query.v[by.id];
    found.textContent = [
      `“${query.p}”: the ${plural(mine.length, "best region")} by ${by.label}`,
      judged.length ? `, ${right} right` : "",
      value === undefined ? "" : `; R-Precision ${value.toFixed(1)}`,
      query.n ? `; ${plural(query.n, "region")} ${data.judged ? "have it" : "were given it"}` : "",
      ".",
    ].join("");
    byId("chips").querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b.textContent === query.p)));
  }

  function match(text) {
    const wanted = text.trim().toLowerCase();
    const named = (test) => data.queries.find((q) => test(q.p.toLowerCase()));
    return named((p) => p === wanted) || (wanted && (named((p) => p.startsWith(wanted)) || named((p) => p.includes(wanted))));
  }

  function marks(list, said) {
    said.forEach(([phrase, verdict, score]) => {
      const item = element("li", verdict), sign = element("span", "sign", SIGNS[verdict]);
      sign.setAttribute("aria-hidden", "true");
      if (SIGNS[verdict]) item.append(sign, element("span", "hidden", `${verdict}: `));
      item.append(element("span", "what", phrase));
      if (score !== null) item.append(element("span", "score", score.toFixed(2)));
      list.append(item);
    });
    if (!said.length) list.append(element("li", "nothing", "nothing"));
  }

  function open(image) {
    const svg = byId("image-sight"), boxes = svg.querySelector("g"), list = byId("image-regions");
    place(svg, image, [0, 0, image.w, image.h]);
    set(svg, { "aria-label": `Image ${image.k} with ${plural(image.r.length, "numbered region")}` });
    boxes.replaceChildren();
    list.replaceChildren();
    image.r.forEach(([x, y, w, h, tagX, tagY, known, said], n) => {
      const drawn = copy("box-template").firstElementChild, size = (0.07 * Math.max(image.w, image.h)) / 10;
      drawn.querySelectorAll(".casing, .box").forEach((rect) => set(rect, { x, y, width: w, height: h }));
      drawn.querySelector(".box").setAttribute("class", known ? "known" : "proposed");
      drawn.querySelector(".tag").setAttribute("transform", `translate(${tagX} ${tagY}) scale(${size})`);
      drawn.querySelector("text").textContent = n + 1;
      boxes.append(drawn);
      const row = copy("region-template");
      row.querySelector(".number").textContent = n + 1;
      marks(row.querySelector("ul"), said);
      list.append(row);
    });
    byId("image-key").textContent = image.k;
    byId("image-more").textContent = image.m ? `${image.m} not shown` : "";
    byId("image-text").textContent = image.t;
    byId("image").showModal();
  }

  data.rankings.forEach((by, k) => {
    const label = element("label"), choice = element("input");
    set(choice, { type: "radio", name: "ranking", value: k });
    choice.checked = k === 0;
    choice.addEventListener("change", () => current && show(current));
    label.append(choice, ` ${by.label}`);
    byId("rankings").append(label);
  });
  byId("phrases").append(...data.queries.map((q) => Object.assign(element("option"), { value: q.p })));
  const often = [...data.queries].sort((a, b) => b.n - a.n).slice(0, 24);
  byId("chips").append(...often.map((q) => {
    const item = element("li"), button = element("button", "chip", q.p);
    button.type = "button";
    button.addEventListener("click", () => show(q));
    item.append(button);
    return item;
  }));
  input.addEventListener("input", () => {
    const exact = data.queries.find((q) => q.p.toLowerCase() === input.value.trim().toLowerCase());
    if (exact) show(exact);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const query = match(input.value);
    if (query) show(query);
    else found.textContent = `No attribute holds “${input.value.trim()}”; pick one of the list.`;
  });
  byId("image").addEventListener("click", (event) => {
    if (event.target === byId("image")) byId("image").close();
  });
  form.hidden = false;
  if (often.length) show(often[0]);
})();
