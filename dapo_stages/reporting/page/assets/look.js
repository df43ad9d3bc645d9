// Where a token looked, drawn over the image.

// From dark violet to light yellow (inferno, matplotlib): lightness alone tells them apart.
const HEAT = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];

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
    paint(entry.images, heat, layer * (mean + 1) + row);
  } else {
    said += " · no attention map stored";
    for (const canvas of entry.images) if (canvas) canvas.hidden = true;
  }
  entry.looked.textContent = said;
}

function paint(images, heat, row) {
  heat.bytes ??= Uint8Array.from(atob(heat.data), (character) => character.charCodeAt(0));
  const cells = heat.bytes.subarray(row * heat.cells, (row + 1) * heat.cells);
  const low = Math.min(...cells);
  const scale = 1 / (Math.max(...cells) - low || 1);
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
          pixels.data.set([...color((cell - low) * scale), 255], 4 * (y * columns + x));
        }
      }
      drawing.putImageData(pixels, 0, 0);
    }
    start += across * Math.ceil(rows / heat.block);
  });
}

function color(share) {
  const place = share * (HEAT.length - 1);
  const [before, after] = [HEAT[Math.floor(place)], HEAT[Math.ceil(place)]];
  return before.map((value, index) => value + (after[index] - value) * (place % 1));
}
