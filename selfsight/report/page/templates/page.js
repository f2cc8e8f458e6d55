"use strict";
(() => {
  const style = getComputedStyle(document.documentElement);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // A canvas does not follow the colour scheme by itself.
  const recolour = (root) => {
    const text = style.getPropertyValue("--dim").trim();
    const line = style.getPropertyValue("--line").trim();
    const strong = style.getPropertyValue("--text").trim();
    for (const model of root.references()) {
      if (model.type.endsWith("Axis")) {
        model.axis_label_text_color = text;
        model.major_label_text_color = text;
      } else if (model.type === "Grid") {
        model.grid_line_color = line;
      } else if (model.type === "Text") {
        model.text_color = strong;
      } else if (model.type === "Title" || model.type === "LegendItem") {
        model.text_color = strong;
      }
    }
  };

  const documents = new Map();
  const draw = async (script) => {
    const { document: content, places } = JSON.parse(script.textContent);
    const item = { docid: script.id, roots: places, root_ids: Object.keys(places) };
    await Bokeh.embed.embed_items({ [script.id]: content }, [item]);
    const drawn = Bokeh.documents[Bokeh.documents.length - 1];
    documents.set(script.id, drawn);
    drawn.roots().forEach(recolour);
  };
  const ready = (async () => {
    for (const script of document.querySelectorAll("script.bokeh")) await draw(script);
    document.body.dataset.drawn = "yes";
  })();
  dark.addEventListener("change", () => {
    for (const drawn of documents.values()) drawn.roots().forEach(recolour);
  });

  // A finger does not hover: a tap on a point, or a click, shows its image beside the map.
  const showPicked = () => {
    const picked = document.querySelector("#map .picked");
    const source = documents.get("map-charts").get_model_by_name("points").data_source;
    const [n] = source.selected.indices;
    picked.hidden = n === undefined;
    if (picked.hidden) return;
    const { left, top, about, name } = source.data;
    picked.querySelector(".thumbnail").style.backgroundPosition = `${left[n]}px ${top[n]}px`;
    picked.querySelector("b").textContent = about[n];
    picked.querySelector("span").textContent = name[n];
  };
  ready.then(() => {
    if (!documents.has("map-charts")) return;
    const points = documents.get("map-charts").get_model_by_name("points");
    points.data_source.selected.properties.indices.change.connect(showPicked);
  });

  // The colours of the map.
  const colourBy = (number) => {
    const drawn = documents.get("map-charts");
    const points = drawn.get_model_by_name("points");
    const { glyph, selection_glyph, nonselection_glyph, hover_glyph } = points;
    for (const drawn_as of [glyph, selection_glyph, nonselection_glyph, hover_glyph])
      if (drawn_as) drawn_as.fill_color = { field: `colour${number}` };
    for (const legend of document.querySelectorAll("#map .legend"))
      legend.hidden = legend.dataset.colour !== number;
  };
  for (const button of document.querySelectorAll("input[name=map-colour]"))
    button.addEventListener("change", () => ready.then(() => colourBy(button.value)));
  ready.then(() => {
    const chosen = document.querySelector("input[name=map-colour]:checked");
    if (chosen && chosen.value !== "0") colourBy(chosen.value);
  });
})();
