"use strict";
(() => {
  const all = (what, within = document) => [...within.querySelectorAll(what)];
  const one = (what, within = document) => within.querySelector(what);
  const data = JSON.parse(one("#page-data").textContent);
  const images = data.images;
  const element = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text; // never as HTML
    return node;
  };

  // An image is a tile of a sheet: where it lies in an element of any size.
  const dress = (node, number) => {
    const tile = images.tile[number];
    sheetClasses.forEach((name) => node.classList.remove(name));
    node.textContent = tile ? "" : "no longer there";
    node.style.backgroundPosition = "";
    if (!tile) return node;
    const [side, columns, rows] = data.sheets[tile[0]];
    const row = Math.floor(tile[1] / columns), column = tile[1] % columns;
    node.classList.add("s" + tile[0]);
    node.style.backgroundPosition = `${100 * column / Math.max(columns - 1, 1)}% ${100 * row / Math.max(rows - 1, 1)}%`;
    return node;
  };
  const sheetClasses = data.sheets.map((_, number) => "s" + number);
  const thumbnail = (number) => {
    const node = element("button", "pic" + (images.tile[number] ? "" : " gone"));
    node.type = "button";
    node.dataset.p = number;
    return dress(named(node, number), number);
  };
  const named = (node, number) => { node.setAttribute("aria-label", [images.label[number], images.name[number]].filter(Boolean).join(", ")); return node; };
  all(".pic[data-p]").forEach((node) => named(node, Number(node.dataset.p)));

  // The card that shows one image closely.
  const peek = one("#peek");
  const show = (number, x, y) => {
    dress(one(".face", peek), number);
    one(".label", peek).textContent = images.label[number] || "label unknown";
    one(".prediction", peek).textContent = images.prediction[number];
    one(".part", peek).textContent = images.part[number] + (images.part[number] === "training" && images.prediction[number] ? ", learnt from" : "");
    one(".name", peek).textContent = images.name[number];
    peek.dataset.p = number;
    peek.hidden = false;
    const box = peek.getBoundingClientRect();
    const left = x + 18 + box.width > innerWidth ? x - box.width - 14 : x + 18;
    peek.style.left = Math.max(6, Math.min(left, innerWidth - box.width - 6)) + "px";
    peek.style.top = Math.max(6, Math.min(y - box.height / 2, innerHeight - box.height - 6)) + "px";
  };
  const hide = () => { peek.hidden = true; };
  const over = (event) => {
    const node = event.target.closest && event.target.closest("[data-p]");
    if (!node || node === peek) return;
    const box = node.getBoundingClientRect();
    show(Number(node.dataset.p), box.right - 12, box.top + box.height / 2);
  };
  document.addEventListener("mouseover", over);
  document.addEventListener("focusin", over);
  document.addEventListener("click", (event) => { if (!event.target.closest("[data-p], canvas")) hide(); });
  document.addEventListener("mouseout", (event) => { if (event.target.closest && event.target.closest("[data-p]")) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, { passive: true });

  // A click enlarges an image or a chart; images of one gallery follow one another.
  const zoom = one("#zoom"), stage = one(".stage", zoom), caption = one(".caption", zoom);
  let line = [], at = 0, scale = 1, drawn = null;
  const fit = () => {
    const [wide, high] = [stage.clientWidth - 16, stage.clientHeight - 16], ratio = Number(drawn.dataset.ratio);
    const width = Math.round(scale * Math.min(wide, high * ratio));
    drawn.style.width = width + "px";
    if (drawn.classList.contains("face")) drawn.style.height = width + "px";
  };
  const put = (node, ratio, words) => {
    drawn = node;
    drawn.dataset.ratio = ratio;
    scale = 1;
    stage.replaceChildren(drawn);
    caption.replaceChildren(...words);
    all("[data-step]", zoom).forEach((button) => { button.hidden = line.length < 2; });
    hide();
    if (!zoom.open) zoom.showModal();
    fit();
  };
  const putImage = () => {
    const number = line[at], words = [element("b", "", images.label[number] || "label unknown")];
    [images.prediction[number], images.part[number], images.name[number]].filter(Boolean).forEach((text) => words.push(element("span", "quiet", text)));
    put(dress(element("div", "face"), number), 1, words);
  };
  const enlarge = (node) => {
    const figure = node.closest("figure"), title = figure && one("figcaption", figure), box = node.getBoundingClientRect();
    const copy = node.cloneNode(true);
    line = [];
    copy.removeAttribute("style");
    copy.removeAttribute("tabindex");
    copy.classList.remove("zoomable");
    put(copy, box.width / Math.max(box.height, 1), title ? [element("span", "", title.textContent.trim())] : []);
  };
  all(".panel svg, .explanation img, img.sheet").forEach((node) => { node.classList.add("zoomable"); node.setAttribute("tabindex", "0"); });
  document.addEventListener("click", (event) => {
    const picture = event.target.closest("[data-p]"), chart = event.target.closest(".zoomable");
    if (picture && picture !== peek && !picture.classList.contains("gone")) {
      const group = picture.closest(".gallery, .strip"), pics = group ? all("[data-p]", group) : [picture];
      line = pics.map((pic) => Number(pic.dataset.p));
      at = pics.indexOf(picture);
      putImage();
    } else if (chart) enlarge(chart);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.matches && event.target.matches(".zoomable")) enlarge(event.target); });
  const step = (count) => { if (line.length > 1) { at = (at + count + line.length) % line.length; putImage(); } };
  const grow = (factor) => { scale = factor ? Math.min(12, Math.max(0.25, scale * factor)) : 1; fit(); };
  zoom.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === zoom || (button && button.dataset.close !== undefined)) zoom.close();
    else if (button && button.dataset.step) step(Number(button.dataset.step));
    else if (button && button.dataset.scale) grow(Number(button.dataset.scale));
  });
  zoom.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
    if (event.key === "+" || event.key === "=") grow(1.5);
    if (event.key === "-") grow(1 / 1.5);
  });
  stage.addEventListener("wheel", (event) => { event.preventDefault(); grow(Math.exp(-event.deltaY * 0.002)); }, { passive: false });

  // Every table is a file: a value with limits becomes three columns.
  const words = (cell) => cell.innerText.replace(/\s+/g, " ").trim();
  const quoted = (text) => {
    const safe = /^[=@\t]|^[+-](?![\d.])/.test(text) ? "'" + text : text; // no formula for a spreadsheet
    return /[",\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
  };
  const csv = (table) => {
    const rows = [...table.rows], width = Math.max(...rows.map((row) => row.cells.length));
    const kept = [...Array(width).keys()].filter((column) => rows.some((row) => row.cells[column] && (words(row.cells[column]) || row.cells[column].dataset.value)));
    const limited = kept.filter((column) => rows.some((row) => row.cells[column] && row.cells[column].dataset.low));
    const value = (cell) => cell.dataset.value !== undefined ? cell.dataset.value : words(cell);
    return rows.map((row) => kept.flatMap((column) => {
      const cell = row.cells[column], heading = row.parentNode.tagName === "THEAD", name = cell ? value(cell) : "";
      if (!limited.includes(column)) return [name];
      return heading ? [name, name + " low", name + " high"] : [name, (cell && cell.dataset.low) || "", (cell && cell.dataset.high) || ""];
    }).map(quoted).join(",")).join("\n") + "\n";
  };
  all("table").forEach((table, number) => {
    const button = element("button", "csv", "CSV"), part = table.closest("[id]"), box = table.closest(".pair") ? table : table.closest(".scroll") || table;
    const name = `${table.dataset.name || (part ? part.id : "table")}-${number + 1}.csv`;
    button.type = "button";
    button.title = "Download this table: " + name;
    button.addEventListener("click", () => {
      const link = element("a");
      link.href = URL.createObjectURL(new Blob(["\ufeff" + csv(table)], { type: "text/csv" }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    box.after(button);
  });

  // Confusion: a cell shows its images; the largest mistake is shown to begin with.
  all(".confusion").forEach((block) => {
    const cells = data.cells[block.dataset.head] || {}, table = one(".matrix", block), view = one(".cellview", block);
    const open = (button) => {
      const numbers = cells[button.dataset.cell] || [], count = Number(one("b", button).textContent);
      all("[aria-pressed]", table).forEach((other) => other.removeAttribute("aria-pressed"));
      button.setAttribute("aria-pressed", "true");
      one("h4", view).textContent = `${button.dataset.title}: ${count} image${count === 1 ? "" : "s"}` + (numbers.length < count ? `, ${numbers.length} shown` : "");
      one(".strip", view).replaceChildren(...numbers.map(thumbnail));
    };
    table.addEventListener("click", (event) => { const button = event.target.closest("button"); if (button) open(button); });
    const size = (button) => Number(one("b", button).textContent);
    const buttons = all(".miss", table).length ? all(".miss", table) : all("button", table);
    if (buttons.length) open(buttons.reduce((most, button) => size(button) > size(most) ? button : most));
    all("[data-show]", block).forEach((button) => button.addEventListener("click", () => {
      table.classList.toggle("shares", button.dataset.show === "shares");
      all("[data-show]", block).forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    }));
  });

  // Tables are sorted by a click on a heading.
  all("table.sortable").forEach((table) => all("th", table).forEach((heading, column) => heading.addEventListener("click", () => {
    const body = one("tbody", table), up = heading.getAttribute("aria-sort") === "descending";
    const value = (row) => { const cell = row.cells[column]; return cell.dataset.sort !== undefined ? Number(cell.dataset.sort) : cell.textContent.trim(); };
    const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)) * (up ? 1 : -1));
    all("th", table).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.replaceChildren(...rows);
  })));

  // The contents say where one is.
  const links = new Map(all("nav a").map((link) => [link.getAttribute("href").slice(1), link]));
  const observer = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    links.forEach((link) => link.classList.remove("here"));
    const link = links.get(entry.target.id);
    if (link) link.classList.add("here");
  }), { rootMargin: "-20% 0px -70% 0px" });
  all("section").forEach((section) => observer.observe(section));

  const canvas = one("#map-canvas");
  if (canvas && data.map) drawMap(canvas, data.map);

  function drawMap(canvas, map) {
    const context = canvas.getContext("2d"), count = map.x.length, select = one("#map-by"), legend = one("#map-legend");
    const view = { x: 0, y: 0, zoom: 1 };
    let width = 0, height = 0, fit = 1, colours = [], keys = null, picked = null, hovered = -1;
    const sheetImages = data.sheets.map((_, number) => {
      const rule = [...one("#sheets").sheet.cssRules].find((rule) => rule.selectorText === ".s" + number);
      const image = new Image();
      image.onload = () => { if (view.zoom > 2) draw(); };
      image.src = rule.style.backgroundImage.slice(5, -2);
      return image;
    });
    const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

    // What the dots may be coloured by: a name, the group of each point (-1: none), the names of the groups.
    const ways = [];
    const add = (title, groups, names, shades) => { if (new Set(groups.flat()).size > 0) ways.push({ title, groups, names, shades }); };
    data.heads.forEach((head, number) => add(data.heads.length > 1 ? head.name : head.kind === "multiclass" ? "class" : "tag", map.labels[number], head.classes, data.palette));
    if (map.wrong.some((value) => value >= 0)) add("error", map.wrong, ["right", "wrong"], ["--blue", "--orange"]);
    add("origin of the label", map.origin, ["unknown", "given", "pseudo", "corrected", "synthetic"], ["--line", "--blue", "--orange", "--green", "--red"]);
    add("part", map.split, ["training", "validation", "test"], ["--line", "--blue", "--orange"]);
    if (map.suspicion) ways.push({ title: "suspicion", scale: map.suspicion, low: "not suspected", high: "label very unlikely" });
    ways.push({ title: "neighbours that disagree", scale: map.disagreement, low: "all neighbours bear its label", high: "none does" });
    ways.forEach((way, number) => { const option = element("option", "", way.title); option.value = number; select.append(option); });

    const first = (group) => Array.isArray(group) ? (group.length ? group[0] : -1) : group;
    const mix = (a, b, t) => `color-mix(in srgb, ${a} ${Math.round(100 * (1 - t))}%, ${b})`;
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const resolve = (shade) => shade.startsWith("--") ? css(shade) : dark.matches ? mix(shade, "white", 0.38) : shade;
    function paint() {
      const way = ways[select.value], none = mix(css("--quiet"), css("--card"), 0.55);
      picked = null;
      legend.replaceChildren();
      if (way.scale) {
        const low = mix(css("--quiet"), css("--card"), 0.6), steps = [...Array(21).keys()].map((step) => mix(low, css("--orange"), step / 20));
        colours = way.scale.map((value) => value === null ? none : steps[Math.round(20 * value)]);
        keys = way.scale.map((value) => value === null ? -1 : value);
        const ramp = element("span", "ramp"), bar = element("i");
        bar.style.background = `linear-gradient(90deg, ${low}, ${css("--orange")})`;
        ramp.append(element("span", "", way.low), bar, element("span", "", way.high));
        legend.append(ramp);
      } else {
        const shade = (group) => resolve(way.shades[group % way.shades.length]);
        const cached = way.names.map((_, group) => shade(group));
        colours = way.groups.map((group) => first(group) < 0 ? none : cached[first(group)]);
        keys = way.groups.map(first);
        const sizes = new Map();
        way.groups.forEach((group) => [].concat(group).forEach((one) => sizes.set(one, (sizes.get(one) || 0) + 1)));
        [...sizes].filter(([group]) => group >= 0).sort((a, b) => sizes.size > 40 ? b[1] - a[1] : a[0] - b[0]).slice(0, 120).forEach(([group, size]) => {
          const button = element("button"), dot = element("i");
          button.type = "button";
          dot.style.background = cached[group];
          button.append(dot, element("span", "", way.names[group]), element("span", "quiet", size));
          button.addEventListener("click", () => {
            picked = picked === group ? null : group;
            all("button", legend).forEach((other) => other.setAttribute("aria-pressed", String(other === button && picked !== null)));
            draw();
          });
          legend.append(button);
        });
      }
      order();
      draw();
    }
    let sorted = [];
    const order = () => { sorted = [...Array(count).keys()].sort((a, b) => (keys[a] < 0) - (keys[b] < 0) ? (keys[b] < 0) - (keys[a] < 0) : ways[select.value].scale || ways[select.value].title === "error" ? keys[a] - keys[b] : 0); };
    const dimmed = (point) => { const way = ways[select.value]; return picked !== null && ![].concat(way.groups[point]).includes(picked); };

    const toScreen = (point) => [(map.x[point] - 500 - view.x) * fit * view.zoom + width / 2, (map.y[point] - 500 - view.y) * fit * view.zoom + height / 2];
    let waiting = false;
    function draw() { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; render(); }); } }
    function render() {
      const ratio = devicePixelRatio || 1;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      const inside = [];
      for (const point of sorted) {
        const [x, y] = toScreen(point);
        if (x > -40 && x < width + 40 && y > -40 && y < height + 40) inside.push([point, x, y]);
      }
      const faces = view.zoom > 2.4 && inside.length < 420;
      const size = faces ? Math.max(18, Math.min(64, 9 * view.zoom)) : Math.max(2.2, Math.min(5.5, 150 / Math.sqrt(count) * Math.sqrt(view.zoom) * 0.42));
      for (const [point, x, y] of inside) {
        context.globalAlpha = dimmed(point) ? 0.12 : 0.88;
        context.fillStyle = colours[point];
        const tile = faces ? images.tile[map.image[point]] : null;
        if (tile && sheetImages[tile[0]].complete) {
          const [side, columns] = data.sheets[tile[0]];
          context.globalAlpha = dimmed(point) ? 0.15 : 1;
          context.fillRect(x - size / 2 - 2, y - size / 2 - 2, size + 4, size + 4);
          context.drawImage(sheetImages[tile[0]], side * (tile[1] % columns), side * Math.floor(tile[1] / columns), side, side, x - size / 2, y - size / 2, size, size);
        } else {
          context.beginPath();
          context.arc(x, y, size, 0, 7);
          context.fill();
        }
      }
      if (hovered >= 0) {
        const [x, y] = toScreen(hovered);
        context.globalAlpha = 1;
        context.strokeStyle = css("--ink");
        context.lineWidth = 2;
        context.beginPath();
        context.arc(x, y, (faces ? size / 2 : size) + 5, 0, 7);
        context.stroke();
      }
      canvas.dataset.drawn = String(inside.length);
      context.globalAlpha = 1;
    }
    function resize() {
      const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
      width = box.width; height = box.height;
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
      const ends = (values) => [Math.max(...values), Math.min(...values)];
      const [right, left] = ends(map.x), [bottom, top] = ends(map.y);
      fit = Math.min((width - 48) / Math.max(right - left, 1), (height - 48) / Math.max(bottom - top, 1));
      if (view.zoom === 1) { view.x = (right + left) / 2 - 500; view.y = (bottom + top) / 2 - 500; }
      draw();
    }
    function zoom(factor, x = width / 2, y = height / 2) {
      const before = view.zoom;
      view.zoom = Math.max(1, Math.min(60, view.zoom * factor));
      const change = 1 / (fit * before) - 1 / (fit * view.zoom);
      view.x += (x - width / 2) * change;
      view.y += (y - height / 2) * change;
      if (view.zoom === 1) resize(); else draw();
    }
    function nearest(x, y) {
      let best = -1, least = 18 * 18;
      for (let point = 0; point < count; point++) {
        if (dimmed(point)) continue;
        const [px, py] = toScreen(point), distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least) { least = distance; best = point; }
      }
      return best;
    }
    const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    function peekAt(event) {
      const [x, y] = at(event), point = nearest(x, y);
      if (point !== hovered) { hovered = point; draw(); }
      if (point >= 0) show(map.image[point], event.clientX, event.clientY); else hide();
    }
    const touches = new Map();
    let moved = false;
    canvas.addEventListener("pointerdown", (event) => { touches.set(event.pointerId, [event.clientX, event.clientY]); moved = false; });
    addEventListener("pointerup", (event) => { touches.delete(event.pointerId); });
    addEventListener("pointercancel", (event) => { touches.delete(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      const before = touches.get(event.pointerId);
      if (!before) { if (event.pointerType !== "touch") peekAt(event); return; }
      const now = [event.clientX, event.clientY], others = [...touches].filter(([id]) => id !== event.pointerId);
      if (Math.hypot(now[0] - before[0], now[1] - before[1]) < 3) return;
      moved = true;
      hide();
      if (others.length) {
        const other = others[0][1], box = canvas.getBoundingClientRect();
        const factor = Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1]));
        zoom(factor, (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
      } else if (view.zoom > 1) {
        view.x -= (now[0] - before[0]) / (fit * view.zoom);
        view.y -= (now[1] - before[1]) / (fit * view.zoom);
        draw();
      }
      touches.set(event.pointerId, now);
    });
    canvas.addEventListener("click", (event) => { if (!moved) peekAt(event); });
    canvas.addEventListener("mouseleave", () => { hovered = -1; hide(); draw(); });
    canvas.addEventListener("dblclick", (event) => zoom(2, ...at(event)));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // a page that is scrolled past stays a page
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * 0.0022), ...at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = 60 / (fit * view.zoom), moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
      if (moves) { view.x += moves[0]; view.y += moves[1]; draw(); event.preventDefault(); }
      if (event.key === "+" || event.key === "=") zoom(1.5);
      if (event.key === "-") zoom(1 / 1.5);
    });
    all("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
      if (button.dataset.zoom === "all") { view.zoom = 1; resize(); } else zoom(button.dataset.zoom === "in" ? 1.6 : 1 / 1.6);
    }));
    select.addEventListener("change", paint);
    dark.addEventListener("change", paint);
    new ResizeObserver(resize).observe(canvas);
    paint();
  }
})();
