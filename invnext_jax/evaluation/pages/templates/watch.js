// Replaces the sections of the page that the server sends.
"use strict";

const connection = document.getElementById("connection");
const events = new EventSource("/events");

events.onopen = () => { connection.hidden = true; };

events.onerror = () => {
  connection.textContent = events.readyState === EventSource.CLOSED
    ? "The server refused the connection: close other pages of it, then reload this one."
    : "The server does not answer. This page continues when launch/watch.py runs again.";
  connection.hidden = false;
};

events.onmessage = (event) => {
  for (const [name, content] of Object.entries(JSON.parse(event.data))) {
    const section = document.getElementById(name);
    const open = Array.from(section.querySelectorAll("details"), (details) => details.open);
    section.innerHTML = content;
    section.querySelectorAll("details").forEach((details, index) => {
      if (index < open.length) details.open = open[index];
    });
  }
};
