(async () => {  // a function: the same text is a module within a page, and a classic script beside it
  const {default: DataTable} = await import(TABLES);
  const dropdown = ["order", "searchDropdown"], list = ["order", ["searchList"]];
  for (const table of document.querySelectorAll("table.data")) {
    const long = table.tBodies[0].rows.length > 50;
    new DataTable(table, {
      order: [], autoWidth: false, paging: long, info: long, pageLength: 25, columnControl: dropdown,
      ordering: {indicators: false, handler: true}, columnDefs: [{targets: "pick", columnControl: list}],
    });
  }
  for (const box of document.querySelectorAll(".wide, .dt-container .dt-layout-table")) {
    const cue = Object.assign(document.createElement("div"), {className: "cue", textContent: "goes on to the right \u2192"});
    box.before(cue);
    const look = () => {
      const on = box.scrollLeft + box.clientWidth < box.scrollWidth - 1;
      cue.hidden = box.scrollWidth <= box.clientWidth + 1;
      cue.style.visibility = on ? "" : "hidden";
      box.classList.toggle("on", on);
    };
    box.addEventListener("scroll", look, {passive: true});
    const sizes = new ResizeObserver(look);
    [box, ...box.children].forEach((part) => sizes.observe(part));
  }
  const seen = new IntersectionObserver((entries) => entries.filter((e) => e.isIntersecting).forEach(({target}) => {
    seen.unobserve(target);
    const figure = JSON.parse(target.nextElementSibling.textContent);
    Plotly.newPlot(target, figure.data, figure.layout, {responsive: true, displaylogo: false}).then((plot) =>
      plot.on("plotly_click", ({points: [{customdata}]}) => {
        if (customdata?.[0]) location.href = customdata[0].includes(".html") ? customdata[0] : `#${customdata[0]}`;
      }));
  }), {rootMargin: "300px"});
  document.querySelectorAll("div.figure").forEach((figure) => seen.observe(figure));
  document.documentElement.dataset.ready = "";
})();
