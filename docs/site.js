// The source of a section or a row is its list of keys or columns: shown at once.
for (const source of document.querySelectorAll("details.mkdocstrings-source")) source.open = true
