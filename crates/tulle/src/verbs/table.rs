//! Tables as every verb prints them: left-aligned columns, two spaces apart, no lines.

/// Lays rows out under their headings. Trailing spaces are cut; a heading row is left out when it is empty.
pub(crate) fn render(headings: &[&str], rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).chain([headings.len()]).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (cell, width) in cells.zip(&widths) {
            let space = width.saturating_sub(cell.chars().count()) + 2;
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', space));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    if !headings.is_empty() {
        line(&mut headings.iter().copied());
    }
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "long cell".to_owned()], vec!["catalog".to_owned(), String::new()]];
        let table = super::render(&["NAME", "STATE"], &rows);
        assert_eq!(table, "NAME     STATE\na        long cell\ncatalog\n");
    }
}
