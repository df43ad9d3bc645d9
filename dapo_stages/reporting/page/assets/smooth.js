// Smoothed curves over iterations, the measured ones pale behind them.

const smoothing = document.getElementById("smoothing");

/** Exponential moving average without the pull of its start, as in TensorBoard: heights of one unbroken part. */
function smoothed(heights, share) {
  let sum = 0;
  let weight = 0;
  return heights.map((height) => {
    sum = share * sum + (1 - share) * height;
    weight = share * weight + 1 - share;
    return sum / weight;
  });
}

function setSmoothing(share) {
  smoothing.parentElement.nextElementSibling.textContent = share ? share.toFixed(2) : "off";
  for (const chart of charts.filter((one) => one.over === "iteration")) {
    chart.svg.classList.toggle("smoothed", share > 0);
    for (const old of chart.svg.querySelectorAll(".smooth")) old.remove();
    for (const line of share ? chart.svg.querySelectorAll(".line") : []) {
      const points = [...line.points];
      const heights = smoothed(points.map((point) => point.y), share);
      const drawn = document.createElementNS(chart.svg.namespaceURI, "polyline");
      drawn.setAttribute("class", "smooth");
      drawn.setAttribute("points", points.map((point, index) => `${point.x},${heights[index].toFixed(1)}`).join(" "));
      if (line.hasAttribute("stroke-dasharray")) drawn.setAttribute("stroke-dasharray", line.getAttribute("stroke-dasharray"));
      line.after(drawn);
    }
  }
}

smoothing?.addEventListener("input", () => setSmoothing(+smoothing.value));
if (smoothing) {
  smoothing.closest("p").hidden = false;
  document.querySelector("p.soft .help").hidden = false;
}
