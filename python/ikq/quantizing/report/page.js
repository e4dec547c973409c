// A click on a heading sorts by it, numbers (data-v) as numbers; again the other way round.
for (const table of document.querySelectorAll('table.sorts'))
  table.tHead.rows[0].querySelectorAll('th').forEach((th, column) => th.onclick = () => {
    const up = th.dataset.up = th.dataset.up === '1' ? '0' : '1';
    const key = row => { const c = row.cells[column]; return 'v' in c.dataset ? Number(c.dataset.v) : c.textContent; };
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => { const x = key(a), y = key(b);
      const order = typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y));
      return up === '1' ? order : -order; });
    table.tBodies[0].append(...rows);
  });
