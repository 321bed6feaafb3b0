// Shows what the registry wants and what the pods serve. Text is set as text, never as markup.
"use strict";

const REFRESH_MS = 5000;

function cell(row, text, title) {
  const element = row.insertCell();
  element.textContent = text ?? "–";
  if (title) {
    element.title = title;
    element.className = "trouble";
  }
}

function describePods(serving) {
  const versions = Object.values(serving);
  if (versions.length === 0) {
    return "no pod";
  }
  const different = [...new Set(versions.map((version) => version ?? "none"))];
  return `${different.join(", ")} (pods: ${versions.length})`;
}

function show(fleet) {
  const body = document.querySelector("tbody");
  body.replaceChildren();
  for (const adapter of fleet.adapters) {
    const row = body.insertRow();
    cell(row, adapter.name);
    cell(row, adapter.aliases.champion);
    cell(row, adapter.aliases.live);
    cell(row, adapter.gate);
    cell(row, adapter.state, adapter.error);
    cell(row, describePods(adapter.serving));
    cell(row, adapter.trials.join("\n") || null);
    cell(row, adapter.num_versions);
  }
  document.querySelector("table").hidden = fleet.adapters.length === 0;
  const silent = fleet.silent_pods.length ? `; no answer from ${fleet.silent_pods.join(", ")}` : "";
  document.getElementById("status").textContent = `Adapters: ${fleet.adapters.length}${silent}`;
}

async function refresh() {
  try {
    const response = await fetch("adapters", { headers: { Accept: "application/json" } });
    const answer = await response.json();
    if (!response.ok) {
      throw new Error(answer.detail);
    }
    show(answer);
  } catch (error) {
    document.getElementById("status").textContent = `The fleet cannot be shown: ${error.message}`;
  }
  setTimeout(refresh, REFRESH_MS);
}

refresh();
