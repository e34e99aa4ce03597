for (const block of document.querySelectorAll("pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy: " + (block.getAttribute("aria-label") || "code"));
  button.addEventListener("click", async () => {
    const text = block.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(block);
      button.textContent = "Selected: press Ctrl+C";
    }
    document.getElementById("status").textContent = button.textContent;
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  block.before(button);
}

// Only what scrolls is a stop for the keyboard.
function stops() {
  for (const box of document.querySelectorAll(".scroll, pre")) box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
}
stops();
addEventListener("resize", stops);
document.addEventListener("toggle", stops, true);
