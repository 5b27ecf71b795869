// Finds a message in the search that was pasted with its values. In an index entry "..." stands for a value. An entry is a
// hit if all its pieces stand in what was typed. Without this script the search works as Sphinx makes it.
document.addEventListener("DOMContentLoaded", () => {
    if (typeof Search === "undefined") return;  // another page than that of the search
    const search = Search._performSearch;
    Search._performSearch = (query, ...terms) => [...search(query, ...terms), ...messagesIn(normal(query))];

    const normal = (text) => text.toLowerCase().replace(/[“”]/g, '"').replace(/[‘’]/g, "'").replace(/\s+/g, " ");

    // Results are shown from the last one to the first one: the longest entry comes first.
    const messagesIn = (query) => Object.entries(Search._index.indexentries)
        .filter(([entry]) => entry.includes(" ") && piecesOf(entry).every((piece) => query.includes(piece)))
        .sort(([one], [other]) => one.length - other.length)
        .flatMap(([entry, places]) => places.map(([file, anchor]) => resultOf(entry, file, anchor)));

    const piecesOf = (entry) => normal(entry).split("...").map((piece) => piece.trim()).filter(Boolean);

    const resultOf = (entry, file, anchor) => {
        const { docnames, filenames, titles } = Search._index;
        return [docnames[file], `${titles[file]}: ${entry}`, `#${anchor}`, null, 100, filenames[file], "index"];
    };
});
