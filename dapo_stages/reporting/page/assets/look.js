// Where a token looked, drawn over the image.

// From violet to yellow, as the upper part of inferno (matplotlib): lightness alone tells them apart.
const HEAT = [[147, 38, 103], [221, 81, 58], [252, 165, 10], [250, 230, 20]];
const OPACITY = 0.6; // of the cell that got most

/** Show what a token of a box weighs and where it looked; null: the mean over the completion's tokens. */
function look(box, token) {
  const { one, entry } = boxes.get(box);
  entry.current = box;
  entry.token = token;
  const heat = one.heat;
  const layer = heat ? Math.max(0, heat.layers.indexOf(state.layer)) : 0;
  const index = [...box.parentElement.parentElement.children].indexOf(box.parentElement) + 1;
  let said = `completion ${index}, mean over its tokens`;
  if (token !== null) {
    const text = one.tokens[token].slice(0, 60).replaceAll("\n", "⏎");
    said = `“${text}” in completion ${index} · weight ${number(one.weights[token])} · VGR ${number(one.vgrs[token])}`;
  }
  if (heat) {
    const mean = heat.seen[layer].length - 1; // the row behind those of the tokens
    const row = token === null ? mean : token;
    const share = (100 * heat.seen[layer][row]).toFixed(1);
    said += ` · ${share}% of the attention on the image, ${heat.layers[layer]} layers`;
    if (entry.slider) [entry.slider.value, entry.named.textContent] = [layer, heat.layers[layer]];
    sayKey(entry.key, paint(entry.images, heat, layer * (mean + 1) + row));
  } else {
    entry.key.hidden = true;
    said += " · no attention map stored";
    for (const canvas of entry.images) if (canvas) canvas.hidden = true;
  }
  entry.looked.textContent = said;
  entry.shares.forEach(({ caption, second }, which) => {
    const part = one.shares?.[which];
    caption.textContent = [second, part == null ? "" : `${(100 * part).toFixed(1)}%`].filter(Boolean).join(" · ");
  });
}

/** What the colors of a map stand for; `times`: the brightest cell as a multiple of the average one. */
function sayKey(key, times) {
  key.hidden = false;
  const most = times > 100 ? "over 100" : number(times, 1);
  key.lastChild.textContent = `${most} × the average cell`;
}

function keyElement() {
  const steps = [0, 0.25, 0.5, 0.75, 1].map(() => make("i"));
  steps.forEach((step, index) => {
    const [red, green, blue, opacity] = shade(index / (steps.length - 1));
    step.style.backgroundColor = `rgb(${red} ${green} ${blue} / ${opacity / 255})`;
  });
  const key = make("div", { className: "key", hidden: true });
  key.append("the average or less ", make("span", { className: "shades" }, ...steps), " ", make("span"));
  return key;
}

/** Draw a row of cells over the images. A cell with at most the average attention is not painted at all; above it, color
 * and opacity grow up to the cell that got most, and to twice the average at least. The brightest cell by the average. */
function paint(images, heat, row) {
  heat.bytes ??= Uint8Array.from(atob(heat.data), (character) => character.charCodeAt(0));
  const cells = heat.bytes.subarray(row * heat.cells, (row + 1) * heat.cells);
  const average = cells.reduce((sum, cell) => sum + cell, 0) / cells.length;
  const most = cells.reduce((high, cell) => Math.max(high, cell), 0);
  const above = Math.max(most, 2 * average) - average;
  let start = 0;
  heat.shapes.forEach(([rows, columns], which) => {
    const across = Math.ceil(columns / heat.block);
    const canvas = images[which];
    if (canvas) {
      canvas.hidden = false;
      [canvas.width, canvas.height] = [columns, rows];
      const drawing = canvas.getContext("2d");
      const pixels = drawing.createImageData(columns, rows);
      for (let y = 0; y < rows; y += 1) {
        for (let x = 0; x < columns; x += 1) {
          const cell = cells[start + Math.floor(y / heat.block) * across + Math.floor(x / heat.block)];
          pixels.data.set(shade(above > 0 ? (cell - average) / above : 0), 4 * (y * columns + x));
        }
      }
      drawing.putImageData(pixels, 0, 0);
    }
    start += across * Math.ceil(rows / heat.block);
  });
  return average ? most / average : 1;
}

/** Red, green, blue and opacity of a cell, 0 to 255; `share`: how far it is from the average to the brightest. */
function shade(share) {
  const height = Math.min(Math.max(share, 0), 1);
  const place = height * (HEAT.length - 1);
  const [before, after] = [HEAT[Math.floor(place)], HEAT[Math.ceil(place)]];
  const color = before.map((value, index) => Math.round(value + (after[index] - value) * (place % 1)));
  return [...color, Math.round(255 * OPACITY * height)];
}
