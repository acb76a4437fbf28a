/** Copy an element's text and say so on the button; without a clipboard (plain HTTP), select the text instead. */
export async function copyText(source, button) {
  if (!navigator.clipboard) {
    getSelection().selectAllChildren(source);
    return;
  }
  await navigator.clipboard.writeText(source.textContent);
  const label = button.textContent;
  button.textContent = "Copied";
  button.disabled = true;
  setTimeout(() => {
    button.textContent = label;
    button.disabled = false;
  }, 1200);
}
