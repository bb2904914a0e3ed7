"use strict";
// Draws the page from its JSON. Text of a run only ever becomes text nodes.
(() => {
  const root = document.documentElement;
  const refreshSeconds = Number(root.dataset.refresh || 0);
  const LIGHT = ["#0b62a8", "#b8400a", "#04704f", "#7434d0", "#8a5a00", "#b0226b", "#0a6a78", "#4b5563"];
  const DARK = ["#6cb4ff", "#ff9d66", "#4ade9f", "#c4a5ff", "#ffd166", "#f48fb1", "#67e8f9", "#d4d4d4"];
  const MARKS = {
    start: ["#2f6fde", "#7aa8ff"], checkpoint: ["#7d8794", "#8b95a3"], rollback: ["#b0226b", "#f48fb1"],
    skipped_update: ["#c2410c", "#ff9d66"], straggler: ["#8a5a00", "#ffd166"],
  };
  const ON = {
    Loss: ["start", "skipped_update", "rollback", "new_level", "phase", "stop", "hang"],
    Updates: ["start", "skipped_update", "rollback", "new_level", "stop"],
    "Speed and memory": ["start", "checkpoint", "checkpoint_failed", "straggler", "hang", "rollback"],
  };
  const AXES = { step: "step", tokens: "tokens", hours: "hours of steps", flops: "FLOPs" };
  const state = { axis: "step", log: null, range: true, marks: true, zoom: null, hidden: new Set(), filters: {} };
  let payload = JSON.parse(document.getElementById("data").textContent);
  let charts = [];
  let following = false;

  // --- small helpers
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (typeof value === "boolean") node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const colour = (number) => (isDark() ? DARK : LIGHT)[number % LIGHT.length];
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(3);
    return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 7 : 5 });
  };
  const short = (value) => {
    const size = Math.abs(value);
    for (const [unit, name] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (size >= unit && size < 1e15) return `${+(value / unit).toPrecision(6)}${name}`;
    return size !== 0 && (size < 1e-3 || size >= 1e15) ? value.toExponential(1) : `${+value.toPrecision(6)}`;
  };
  const clear = (colour_, alpha) => colour_ + Math.round(alpha * 255).toString(16).padStart(2, "0");

  // --- a run's steps on the chosen axis
  const axisOf = (run) => run.axes[state.axis] || run.axes.step.map(() => null);
  const place = (run, step) => {
    const steps = run.axes.step, values = axisOf(run);
    if (!steps.length) return state.axis === "step" ? step : null;
    if (state.axis === "step") return step;
    if (step <= 0) return 0;
    let low = 0, high = steps.length - 1;
    if (step > steps[high]) return values[high];
    while (low < high) { const middle = (low + high) >> 1; if (steps[middle] < step) low = middle + 1; else high = middle; }
    const before = low ? steps[low - 1] : 0, from = low ? values[low - 1] : 0;
    if (values[low] === null || from === null) return null;
    return from + ((values[low] - from) * (step - before)) / Math.max(1e-9, steps[low] - before);
  };
  const table = (x, columns) => {
    const kept = [];
    let last = -Infinity;
    x.forEach((value, at) => { if (value !== null && value > last) { kept.push(at); last = value; } });
    return [x, ...columns].map((column) => kept.map((at) => column[at]));
  };

  // --- what a chart consists of: tables to join, series over them, bands
  const parts = (figure, isEvaluation) => {
    const tables = [], series = [], bands = [], names = [];
    payload.runs.forEach((run, number) => {
      if (state.hidden.has(number)) return;
      const stroke = colour(number), label = payload.runs.length > 1 ? `${run.name} ` : "";
      const found = isEvaluation ? null : run.figures[figure.name];
      if (found && run.rows) {
        const columns = [found.mean], smooth = found.smoothed;
        const at = series.length + 1;
        series.push({ stroke: smooth ? clear(stroke, 0.5) : stroke, width: smooth ? 1 : 1.5, points: { show: run.rows < 3 } });
        names.push(`${label}${smooth ? "raw" : ""}`);
        if (smooth) { columns.push(smooth); series.push({ stroke, width: 2, points: { show: false } }); names.push(`${label}smoothed`); }
        if (found.low && state.range) {
          columns.push(found.high, found.low);
          series.push({ stroke: clear(stroke, 0.35), width: 1, points: { show: false } }, { stroke: clear(stroke, 0.35), width: 1, points: { show: false } });
          bands.push({ series: [at + columns.length - 2, at + columns.length - 1], fill: clear(stroke, 0.28) });
          names.push(`${label}highest`, `${label}lowest`);
        }
        tables.push(table(axisOf(run), columns));
      }
      const key = isEvaluation ? figure.name : figure.name === "loss" ? "loss" : null;
      const points = key ? run.evaluations.filter((row) => typeof row[key] === "number") : [];
      if (points.length) {
        tables.push(table(points.map((row) => place(run, row.step)), [points.map((row) => row[key])]));
        series.push({ stroke: isEvaluation || payload.runs.length > 1 ? stroke : css("--text"), width: 1.5, dash: isEvaluation ? [] : [6, 3],
          points: { show: true, size: 6, fill: stroke, stroke: css("--text") } });
        names.push(isEvaluation ? label || figure.title : `${label}validation`);
      }
    });
    return { tables: tables.filter((one) => one[0].length), series, bands, names };
  };

  const visible = (section) =>
    payload.runs.flatMap((run, number) => state.hidden.has(number) || !state.marks ? [] :
      run.marks.filter((mark) => (ON[section] || ["start"]).includes(mark.kind))
        .map((mark) => ({ ...mark, run, x: place(run, mark.step) })).filter((mark) => mark.x !== null));
  const markColour = (kind) => (MARKS[kind] || ["#a8320a", "#ff9d66"])[isDark() ? 1 : 0];

  const overlay = (figure, marks, limits) => (chart) => {
    const { left, top, width, height } = chart.bbox, pen = chart.ctx;
    pen.save();
    pen.beginPath(); pen.rect(left, top, width, height); pen.clip();
    for (const mark of marks) {
      const at = chart.valToPos(mark.x, "x", true);
      if (at < left || at > left + width) continue;
      pen.strokeStyle = markColour(mark.kind);
      pen.globalAlpha = mark.kind === "checkpoint" ? 0.35 : 0.85;
      pen.setLineDash(mark.kind === "checkpoint" ? [2, 4] : []);
      pen.lineWidth = devicePixelRatio;
      pen.beginPath(); pen.moveTo(at, top); pen.lineTo(at, top + height); pen.stroke();
    }
    pen.globalAlpha = 1;
    pen.setLineDash([8, 5]); pen.lineWidth = 1.5 * devicePixelRatio; pen.strokeStyle = css("--warn");
    for (const limit of limits) {
      const at = chart.valToPos(limit, "y", true);
      pen.beginPath(); pen.moveTo(left, at); pen.lineTo(left + width, at); pen.stroke();
    }
    pen.restore();
  };

  // Spikes many times as high as the curve would flatten it on a linear axis.
  const hasSpikes = () => {
    const found = payload.runs.filter((_, number) => !state.hidden.has(number)).map((run) => run.figures.loss).filter(Boolean);
    const most = (name) => Math.max(0, ...found.flatMap((one) => one[name] || one.mean));
    return most("high") > 2.5 * most("smoothed");
  };

  const draw = (holder, readout, figure, section, isEvaluation) => {
    const { tables, series, bands, names } = parts(figure, isEvaluation);
    if (!tables.length) { readout.textContent = "No values on this axis."; return null; }
    const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
    const marks = visible(section);
    const limits = isEvaluation ? [] : [...new Set(payload.runs.flatMap((run, n) =>
      state.hidden.has(n) || typeof run.limits[figure.name] !== "number" ? [] : [run.limits[figure.name]]))];
    const isLog = (figure.name === "loss" ? (state.log ?? hasSpikes()) : figure.is_log) &&
      data.slice(1).every((column) => column.every((value) => value === null || value === undefined || value > 0));
    const axis = (more) => ({ stroke: css("--quiet"), grid: { stroke: clear("#808890", 0.22), width: 1 }, ticks: { show: false }, font: "12px system-ui", ...more });
    const options = {
      width: holder.clientWidth || 360, height: section === "Loss" ? 340 : 220,
      legend: { show: false }, bands, series: [{}, ...series.map((one) => ({ spanGaps: true, ...one }))],
      scales: { x: { time: false }, y: isLog ? { distr: 3 } : { range: (_, low, high) => {
        if (low === null) return [0, 1];
        if (figure.name.endsWith("_score") && limits.length) { high = Math.max(high, ...limits); }
        const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
        return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
      } } },
      axes: [axis({ values: (_, ticks) => ticks.map(short) }),
        axis({ size: 58, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) })],
      cursor: { sync: { key: "triax", setSeries: false }, drag: { x: true, y: false }, focus: { prox: 30 } },
      hooks: {
        draw: [overlay(figure, marks, limits)],
        setCursor: [(chart) => tell(chart, readout, names, marks)],
        setScale: [(chart, key) => { if (key === "x") follow(chart); }],
      },
    };
    const chart = new uPlot(options, data, holder);
    chart.root.querySelector("canvas").setAttribute("aria-hidden", "true");
    charts.push({ chart, holder, full: [data[0][0], data[0][data[0].length - 1]] });
    if (state.zoom) { following = true; chart.setScale("x", state.zoom); following = false; }
    return chart;
  };

  const tell = (chart, readout, names, marks) => {
    const at = chart.cursor.idx;
    if (at === null || at === undefined || chart.cursor.left < 0) { readout.replaceChildren(); return; }
    const spans = [make("span", {}, `${AXES[state.axis]} ${shown(chart.data[0][at])}`)];
    names.forEach((name, number) => {
      let value = chart.data[number + 1][at];
      if (value === undefined) return;
      spans.push(make("span", {}, `${name} ${shown(value)}`.trim()));
    });
    const near = marks.filter((mark) => Math.abs(chart.valToPos(mark.x, "x") - chart.cursor.left) < 6).slice(0, 3);
    for (const mark of near) spans.push(make("span", { class: "mark" },
      `${mark.kind.replaceAll("_", " ")}, step ${shown(mark.step)}: ${payload.notes[mark.kind] || ""}`));
    readout.replaceChildren(...spans);
  };

  // --- zoom that all charts follow
  const follow = (source) => {
    if (following) return;
    const { min, max } = source.scales.x;
    if (min === null || min === undefined) return;
    const own = charts.find((one) => one.chart === source);
    if (!own) return;
    const isFull = min <= own.full[0] && max >= own.full[1];
    if (isFull && !state.zoom) return;
    state.zoom = isFull ? null : { min, max };
    following = true;
    for (const { chart, full } of charts)
      if (chart !== source) chart.setScale("x", state.zoom || { min: full[0], max: full[1] });
    following = false;
  };
  const zoomTo = (zoom) => {
    state.zoom = zoom;
    following = true;
    for (const { chart, full } of charts) chart.setScale("x", zoom || { min: full[0], max: full[1] });
    following = false;
  };
  const keys = (chart) => (event) => {
    const { min, max } = chart.scales.x, span = max - min, last = chart.data[0].length - 1;
    let at = chart.cursor.idx ?? Math.floor(last / 2);
    const middle = chart.data[0][at];
    const move = (to) => {
      at = Math.min(last, Math.max(0, to));
      const value = chart.data[0][at];
      if (value < min || value > max) zoomTo({ min: value - span / 2, max: value + span / 2 });
      chart.setCursor({ left: chart.valToPos(value, "x"), top: 10 });
    };
    const stride = event.shiftKey ? Math.max(1, Math.round(last / 20)) : 1;
    const actions = {
      ArrowLeft: () => move(at - stride), ArrowRight: () => move(at + stride), Home: () => move(0), End: () => move(last),
      "+": () => zoomTo({ min: middle - span / 4, max: middle + span / 4 }),
      "=": () => zoomTo({ min: middle - span / 4, max: middle + span / 4 }),
      "-": () => zoomTo({ min: middle - span, max: middle + span }), 0: () => zoomTo(null), Escape: () => zoomTo(null),
    };
    if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
  };

  // --- panels
  const chartPanel = (figure, section, isEvaluation) => {
    const readout = make("div", { class: "readout", "aria-live": "off" });
    const holder = make("div", { class: "plot", tabindex: "0", role: "group",
      "aria-label": `Chart of ${figure.title}. Arrow keys read values, plus and minus zoom, 0 shows all.` });
    const panel = make("figure", { class: section === "Loss" ? "wide" : "", "data-figure": figure.name },
      make("h3", {}, figure.title), make("p", { class: "note" }, figure.note), holder, readout);
    return { panel, begin: () => {
      const chart = draw(holder, readout, figure, section, isEvaluation);
      if (!chart) return;
      holder.addEventListener("keydown", keys(chart));
      holder.addEventListener("focus", () => readout.setAttribute("aria-live", "polite"));
      holder.addEventListener("blur", () => readout.setAttribute("aria-live", "off"));
    } };
  };

  const heat = (one, whose) => {
    const canvas = make("canvas", { role: "img", "aria-label": `${one.title} by layer (rows) and step (columns)` });
    const width = one.steps.length, height = one.rows.length, known = one.rows.flat().filter((value) => value !== null);
    const low = Math.min(...known), high = Math.max(...known);
    canvas.width = width; canvas.height = height;
    const pen = canvas.getContext("2d");
    one.rows.forEach((row, y) => row.forEach((value, x) => {
      if (value === null) return;
      const share = high > low ? (value - low) / (high - low) : 0;
      pen.fillStyle = `hsl(${250 - 200 * share} 75% ${28 + 38 * share}%)`;
      pen.fillRect(x, y, 1, 1);
    }));
    Object.assign(canvas.style, { width: "100%", height: `${Math.max(60, height * 12)}px`, imageRendering: "pixelated" });
    const readout = make("div", { class: "readout" });
    canvas.addEventListener("mousemove", (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.min(width - 1, Math.floor(((event.clientX - box.left) / box.width) * width));
      const y = Math.min(height - 1, Math.floor(((event.clientY - box.top) / box.height) * height));
      readout.textContent = `layer ${one.layers[y]}, step ${shown(one.steps[x])}: ${shown(one.rows[y][x])}`;
    });
    return make("figure", {}, make("h3", {}, `${one.title} by layer${whose}`),
      make("p", { class: "note" }, `Rows are layers ${one.layers[0]} to ${one.layers.at(-1)}, columns steps; from ${shown(low)} (dark) to ${shown(high)} (bright).`), canvas, readout);
  };

  const list = (rows) => make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  const section = (title, ...children) => make("section", { "aria-label": title }, make("h2", {}, title), ...children);
  const swatch = (number) => { const node = make("span", { class: "swatch" }); node.style.background = colour(number); return node; };
  const cards = (pick) => {
    const found = payload.runs.map((run, number) => [run, number, pick(run)]).filter(([, , body]) => body !== null);
    return found.length ? make("div", { class: "cards" }, ...found.map(([run, number, body]) =>
      make("div", { class: "card" }, make("h3", {}, swatch(number), " ", run.name), body))) : null;
  };
  const grid = (heads, rows, label) => make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...rows)));
  const remembered = (name, node) => {
    const property = node.type === "checkbox" ? "checked" : "value";
    if (name in state.filters) node[property] = state.filters[name];
    node.addEventListener("input", () => { state.filters[name] = node[property]; });
    return node;
  };

  const configPanel = () => {
    const runs = payload.runs, many = runs.length > 1;
    const rows = payload.config.map((row) => ({ ...row, node: make("tr", { class: `${row.changed ? "changed" : ""} ${many && row.differs ? "differs" : ""}` },
      make("th", { scope: "row" }, row.path), ...row.values.map((value) => make("td", {}, value)), make("td", {}, row.default),
      make("td", {}, [row.changed ? "changed" : "", many && row.differs ? "differs" : ""].filter(Boolean).join(", "))) }));
    const search = remembered("config", make("input", { type: "search", placeholder: "search", "aria-label": "Search the config" }));
    const only = remembered("changed", make("input", { type: "checkbox", checked: !many }));
    const differing = remembered("differing", make("input", { type: "checkbox", checked: many }));
    const filter = () => rows.forEach((row) => {
      const text = `${row.path} ${row.values.join(" ")}`.toLowerCase();
      row.node.hidden = (only.checked && !row.changed) || (many && differing.checked && !row.differs) || !text.includes(search.value.toLowerCase());
    });
    for (const node of [search, only, differing]) node.addEventListener("input", filter);
    filter();
    return section("Config", make("div", { class: "filters" }, search, make("label", {}, only, "other than the default"),
      many ? make("label", {}, differing, "differs between runs") : null),
      grid(["key", ...runs.map((run) => run.name), "default", ""], rows.map((row) => row.node), "Config"));
  };

  const eventsPanel = () => {
    const rows = payload.runs.flatMap((run) => run.events.map((event) => ({ run, event }))).map(({ run, event }) => {
      const time = event.time === null ? "" : new Date(event.time * 1000).toISOString().slice(0, 19).replace("T", " ");
      const node = make("tr", {}, ...(payload.runs.length > 1 ? [make("td", {}, run.name)] : []), make("td", { class: "time" }, time),
        make("td", { class: "number" }, event.step === null ? "" : shown(event.step)), make("td", { title: payload.notes[event.event] || "" }, event.event), make("td", {}, event.text));
      return { node, text: node.textContent.toLowerCase() };
    });
    const search = remembered("events", make("input", { type: "search", placeholder: "search", "aria-label": "Search the events" }));
    const count = make("span", { class: "note", role: "status" });
    const filter = () => {
      let found = 0;
      for (const row of rows) { row.node.hidden = !row.text.includes(search.value.toLowerCase()); found += row.node.hidden ? 0 : 1; }
      const left = payload.runs.reduce((sum, run) => sum + run.events_left_out, 0);
      count.textContent = `${found} of ${rows.length}${left ? `; ${left} more of frequent kinds are in events.jsonl` : ""}`;
    };
    search.addEventListener("input", filter);
    filter();
    const marked = new Set(payload.runs.flatMap((run) => run.marks.map((mark) => mark.kind)));
    const kinds = [...new Set(rows.length ? payload.runs.flatMap((run) => run.events.map((event) => event.event)) : [])];
    return section("Events", make("div", { class: "filters" }, search, count),
      grid([...(payload.runs.length > 1 ? ["run"] : []), "time (UTC)", "step", "event", "what"], rows.map((row) => row.node), "Events"),
      make("ul", { class: "legend" }, ...kinds.filter((kind) => payload.notes[kind]).map((kind) => {
        const mark = make("span", { class: "swatch" });
        if (marked.has(kind)) mark.style.background = markColour(kind);
        return make("li", {}, mark, ` ${kind.replaceAll("_", " ")}: ${payload.notes[kind]}`);
      })));
  };

  const forecastBody = (run) => {
    if (!run.forecast) return null;
    const of = (value) => (typeof value === "number" ? shown(value) : "–");
    const { memory_gib, measured_memory_gib, tokens_per_second, measured_tokens_per_second } = run.forecast;
    return make("table", {}, make("thead", {}, make("tr", {}, ...["", "forecast", "measured"].map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, make("tr", {}, make("th", { scope: "row" }, "memory (GiB)"), make("td", {}, of(memory_gib)), make("td", {}, of(measured_memory_gib))),
        make("tr", {}, make("th", { scope: "row" }, "tokens/s"), make("td", {}, of(tokens_per_second)), make("td", {}, of(measured_tokens_per_second)))));
  };
  const dataBody = (run) => run.data.length ? make("table", {}, make("thead", {}, make("tr", {}, ...["source", "share", "samples", "epochs"].map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...run.data.map((row) => make("tr", {}, make("td", {}, row.path), make("td", { class: "number" }, `${(100 * row.share).toFixed(1)}%`),
      make("td", { class: "number" }, shown(row.samples)), make("td", { class: "number" }, row.epochs.toFixed(2)))))) : null;

  const render = () => {
    for (const { chart } of charts) chart.destroy();
    charts = [];
    const main = document.getElementById("main"), begins = [], sections = [section("Runs", cards((run) => list(run.facts)))];
    for (const name of payload.sections) {
      const isEvaluation = name === "Evaluation";
      let figures = (isEvaluation ? payload.evaluated : payload.figures).filter((figure) => figure.section === name);
      if (name === "Loss" && !figures.length) figures = [];
      const panels = figures.map((figure) => chartPanel(figure, name, isEvaluation));
      const maps = name === "Experts" ? payload.runs.flatMap((run) => run.layers.map((one) => heat(one, payload.runs.length > 1 ? `, ${run.name}` : ""))) : [];
      if (!panels.length && !maps.length) continue;
      begins.push(...panels.map((one) => one.begin));
      sections.push(section(name, make("div", { class: "charts" }, ...panels.map((one) => one.panel), ...maps)));
    }
    const add = (title, body) => { if (body) sections.push(section(title, body)); };
    add("Forecast and measurement", cards(forecastBody));
    add("Data", cards(dataBody));
    add("Samples", cards((run) => run.samples.length ? make("div", {}, ...run.samples.map((one) =>
      make("div", {}, make("p", { class: "note" }, `after step ${one.step}`), make("pre", { class: "sample" }, one.text)))) : null));
    add("Layout", cards((run) => (run.layout ? make("pre", { tabindex: "0" }, run.layout) : null)));
    if (payload.config.length) sections.push(configPanel());
    add("Environment", cards((run) => (run.environment.length ? list(run.environment) : null)));
    sections.push(eventsPanel());
    main.replaceChildren(...sections);
    begins.forEach((begin) => begin());
    root.dataset.drawn = String(charts.length);
  };

  const controls = () => {
    const box = (text, checked, change) => make("label", {}, make("input", { type: "checkbox", checked, onchange: (event) => { change(event.target.checked); render(); } }), text);
    const axis = make("select", { "aria-label": "Horizontal axis", onchange: (event) => { state.axis = event.target.value; state.zoom = null; render(); } },
      ...Object.entries(AXES).filter(([name]) => payload.runs.some((run) => (run.axes[name] || []).some((value) => value !== null)) || name === "step")
        .map(([name, text]) => make("option", { value: name }, text)));
    const theme = make("button", { type: "button", onclick: () => { root.dataset.theme = isDark() ? "light" : "dark"; controls(); render(); } }, isDark() ? "Light" : "Dark");
    axis.value = state.axis;
    document.getElementById("controls").replaceChildren(make("label", {}, "over", axis), box("log loss", state.log ?? hasSpikes(), (on) => { state.log = on; }),
      box("range", state.range, (on) => { state.range = on; }), box("events", state.marks, (on) => { state.marks = on; }),
      ...(payload.runs.length > 1 ? payload.runs.map((run, number) => make("label", {}, make("input", { type: "checkbox", checked: !state.hidden.has(number),
        onchange: (event) => { state.hidden[event.target.checked ? "delete" : "add"](number); render(); } }), swatch(number), run.name)) : []),
      make("button", { type: "button", onclick: () => zoomTo(null) }, "Whole run"), theme);
  };

  const resize = () => charts.forEach(({ chart, holder }) => {
    if (holder.clientWidth && Math.abs(holder.clientWidth - chart.width) > 1) chart.setSize({ width: holder.clientWidth, height: chart.height });
  });
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(resize, 100); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { controls(); render(); });
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; render(); charts.forEach(({ chart }) => chart.setSize({ width: 340, height: chart.height })); });
  addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; render(); });

  // --- a page that is served asks for what is new
  const status = (text) => { document.getElementById("status").textContent = text; };
  const refresh = async () => {
    try {
      const answer = await fetch(`data.json${location.search}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const text = await answer.text();
      if (text !== refresh.last) { refresh.last = text; payload = JSON.parse(text); render(); }
      status(`As of ${new Date().toLocaleTimeString()}; asks again every ${refreshSeconds} s.`);
    } catch (error) {
      status(`No answer since ${new Date().toLocaleTimeString()} (${error.message}); shown is the last one.`);
    }
    setTimeout(refresh, 1000 * refreshSeconds);
  };
  controls();
  render();
  if (refreshSeconds) setTimeout(refresh, 1000 * refreshSeconds);
})();
