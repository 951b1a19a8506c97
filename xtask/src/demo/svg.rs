//! What a terminal shows as a picture: text with SGR escapes to SVG.

use std::fmt::Write;

/// Width of a cell in pixels: what a character of [`FONT_SIZE`] is wide.
const WIDTH: usize = 9;
/// Height of a cell in pixels.
const HEIGHT: usize = 19;
/// From the top of a cell to its text's base line, in pixels.
const BASELINE: usize = 14;
/// In pixels.
const FONT_SIZE: usize = 15;
/// Free space around the cells, in pixels.
const MARGIN: usize = 12;
const FONTS: &str = "'DejaVu Sans Mono', ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace";

const FOREGROUND: Rgb = Rgb(0xd8, 0xdc, 0xe4);
const BACKGROUND: Rgb = Rgb(0x1b, 0x1f, 0x27);
/// The eight colours and their bright variants, legible on [`BACKGROUND`].
const PALETTE: [Rgb; 16] = [
    Rgb(0x3b, 0x42, 0x52),
    Rgb(0xe0, 0x6c, 0x75),
    Rgb(0x8f, 0xc9, 0x6f),
    Rgb(0xe5, 0xc0, 0x6b),
    Rgb(0x61, 0xa4, 0xef),
    Rgb(0xc6, 0x78, 0xdd),
    Rgb(0x56, 0xc2, 0xd0),
    Rgb(0xb6, 0xbc, 0xc8),
    Rgb(0x6b, 0x74, 0x86),
    Rgb(0xff, 0x8a, 0x92),
    Rgb(0xad, 0xe5, 0x8d),
    Rgb(0xff, 0xdb, 0x8a),
    Rgb(0x8a, 0xc0, 0xff),
    Rgb(0xe0, 0x9b, 0xf4),
    Rgb(0x7d, 0xe0, 0xec),
    Rgb(0xff, 0xff, 0xff),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rgb(u8, u8, u8);

/// How a character looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Style {
    foreground: Option<Rgb>,
    background: Option<Rgb>,
    bold: bool,
    dim: bool,
    italic: bool,
    underline: bool,
    reverse: bool,
}

/// A character with its look.
type Cell = (char, Style);

/// Draws `text`, lines with SGR escapes between, in a terminal of `columns` and `rows`.
///
/// Each character takes one cell; other escapes and control characters are left out, as is what lies beyond
/// the terminal. `title` is for who cannot see the picture.
pub(super) fn draw(title: &str, text: &str, (columns, rows): (usize, usize)) -> String {
    let (width, height) = (columns * WIDTH + 2 * MARGIN, rows * HEIGHT + 2 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\">\n<title>{}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{}\"/>\n\
         <g transform=\"translate({MARGIN} {MARGIN})\" fill=\"{}\" font-family=\"{FONTS}\" \
         font-size=\"{FONT_SIZE}\">\n",
        escaped(title),
        BACKGROUND.hex(),
        FOREGROUND.hex()
    );
    let mut style = Style::default();
    for (row, line) in text.lines().take(rows).enumerate() {
        let mut line = cells(line, &mut style);
        line.truncate(columns);
        draw_line(&mut svg, &line, row);
    }
    svg.push_str("</g>\n</svg>\n");
    svg
}

/// `text` without its escapes.
pub(super) fn plain(text: &str) -> String {
    let mut style = Style::default();
    let mut plain = String::new();
    for line in text.lines() {
        plain.extend(
            cells(line, &mut style)
                .into_iter()
                .map(|(character, _)| character),
        );
        plain.push('\n');
    }
    plain
}

/// A line's cells; `style` is that of the line's beginning, and of its end afterwards.
fn cells(line: &str, style: &mut Style) -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut rest = line.chars();
    while let Some(character) = rest.next() {
        if character != '\x1b' {
            if !character.is_control() {
                cells.push((character, *style));
            }
            continue;
        }
        // Only CSI is told from escapes of two characters: tmux shows no others.
        if rest.next() != Some('[') {
            continue;
        }
        let mut parameters = String::new();
        let last = rest.by_ref().find(|character| {
            let ends = ('@'..='~').contains(character);
            if !ends {
                parameters.push(*character);
            }
            ends
        });
        if last == Some('m') {
            style.apply(&parameters);
        }
    }
    cells
}

/// Backgrounds first, then what stands on them: block elements as rectangles, so that they join, and words.
fn draw_line(svg: &mut String, line: &[Cell], row: usize) {
    let top = row * HEIGHT;
    let mut column = 0;
    for run in line.chunk_by(|a, b| a.1.colours().1 == b.1.colours().1) {
        if let (_, Some(background)) = run[0].1.colours() {
            rectangle(
                svg,
                (column * WIDTH, top),
                (run.len() * WIDTH, HEIGHT),
                background,
                1.0,
            );
        }
        column += run.len();
    }
    column = 0;
    for run in
        line.chunk_by(|a, b| a.1 == b.1 && kind(a.0) == kind(b.0) && kind(a.0) != Kind::Block)
    {
        let (character, style) = run[0];
        match kind(character) {
            Kind::Blank => {}
            Kind::Block => {
                let eighths = character as usize - '▁' as usize + 1;
                let height = (HEIGHT * eighths).div_ceil(8);
                let colour = style.colours().0.unwrap_or(FOREGROUND);
                let corner = (column * WIDTH, top + HEIGHT - height);
                rectangle(svg, corner, (WIDTH, height), colour, style.opacity());
            }
            Kind::Word => word(svg, (column * WIDTH, top + BASELINE), run, style),
        }
        column += run.len();
    }
}

fn rectangle(
    svg: &mut String,
    (x, y): (usize, usize),
    (width, height): (usize, usize),
    fill: Rgb,
    opacity: f64,
) {
    let fill = fill.hex();
    let opacity = match opacity {
        1.0 => String::new(),
        opacity => format!(" fill-opacity=\"{opacity}\""),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\"{opacity}/>"
    );
}

/// Each word is put where its cells are, and stretched over them: fonts differ in width.
fn word(svg: &mut String, (x, y): (usize, usize), run: &[Cell], style: Style) {
    let text: String = run.iter().map(|(character, _)| character).collect();
    let mut look = String::new();
    if let (Some(colour), _) = style.colours() {
        look.push_str(&format!(" fill=\"{}\"", colour.hex()));
    }
    if style.dim {
        look.push_str(&format!(" fill-opacity=\"{}\"", style.opacity()));
    }
    for (is_so, attribute) in [
        (style.bold, " font-weight=\"bold\""),
        (style.italic, " font-style=\"italic\""),
        (style.underline, " text-decoration=\"underline\""),
    ] {
        if is_so {
            look.push_str(attribute);
        }
    }
    let length = run.len() * WIDTH;
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" textLength=\"{length}\" lengthAdjust=\"spacingAndGlyphs\"{look}>{}</text>",
        escaped(&text)
    );
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Blank,
    /// A bar of one to eight eighths of the cell's height.
    Block,
    Word,
}

fn kind(character: char) -> Kind {
    match character {
        '▁'..='█' => Kind::Block,
        character if character.is_whitespace() => Kind::Blank,
        _ => Kind::Word,
    }
}

impl Style {
    /// Takes the parameters of one SGR escape; those that are not known change nothing.
    fn apply(&mut self, parameters: &str) {
        let mut numbers = parameters.split(';').map(|parameter| {
            // Behind a colon stands the kind of underline.
            let (number, _) = parameter.split_once(':').unwrap_or((parameter, ""));
            match number {
                "" => 0,
                number => number.parse().unwrap_or(u8::MAX),
            }
        });
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Style::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                3 => self.italic = true,
                4 => self.underline = true,
                7 => self.reverse = true,
                22 => (self.bold, self.dim) = (false, false),
                23 => self.italic = false,
                24 => self.underline = false,
                27 => self.reverse = false,
                30..=37 => self.foreground = Some(indexed(number - 30)),
                38 => self.foreground = extended(&mut numbers).or(self.foreground),
                39 => self.foreground = None,
                40..=47 => self.background = Some(indexed(number - 40)),
                48 => self.background = extended(&mut numbers).or(self.background),
                49 => self.background = None,
                90..=97 => self.foreground = Some(indexed(number - 90 + 8)),
                100..=107 => self.background = Some(indexed(number - 100 + 8)),
                _ => {}
            }
        }
    }

    /// Colours of the character and behind it, where they are not the terminal's own.
    fn colours(self) -> (Option<Rgb>, Option<Rgb>) {
        if self.reverse {
            (
                Some(self.background.unwrap_or(BACKGROUND)),
                Some(self.foreground.unwrap_or(FOREGROUND)),
            )
        } else {
            (self.foreground, self.background)
        }
    }

    fn opacity(self) -> f64 {
        if self.dim { 0.6 } else { 1.0 }
    }
}

/// The colour after a 38 or 48: `5;N` or `2;R;G;B`.
fn extended(numbers: &mut impl Iterator<Item = u8>) -> Option<Rgb> {
    match numbers.next()? {
        5 => numbers.next().map(indexed),
        2 => Some(Rgb(numbers.next()?, numbers.next()?, numbers.next()?)),
        _ => None,
    }
}

/// One of 256 colours: the palette, a cube of six steps a side, greys.
fn indexed(number: u8) -> Rgb {
    let step = |step: u8| if step == 0 { 0 } else { 55 + 40 * step };
    match number {
        0..16 => PALETTE[usize::from(number)],
        16..232 => {
            let number = number - 16;
            Rgb(step(number / 36), step(number / 6 % 6), step(number % 6))
        }
        232.. => {
            let grey = 8 + 10 * (number - 232);
            Rgb(grey, grey, grey)
        }
    }
}

impl Rgb {
    fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is drawn on the background, element by element.
    fn elements(text: &str) -> Vec<String> {
        let svg = draw("a title", text, (20, 3));
        let inner = svg
            .split_once("\">\n<title>")
            .and_then(|_| svg.split_once("15\">\n"));
        let (_, inner) = inner.expect("a group");
        let inner = inner.strip_suffix("</g>\n</svg>\n").expect("an end");
        inner.lines().map(str::to_owned).collect()
    }

    /// The attributes that a word has beyond its place, for one after the escape `sgr`.
    fn look(sgr: &str) -> String {
        let elements = elements(&format!("\x1b[{sgr}mword"));
        let word = elements.last().expect("a word");
        let look = word
            .split_once("Glyphs\"")
            .and_then(|(_, rest)| rest.split_once('>'));
        look.expect("a word").0.trim().to_owned()
    }

    #[test]
    fn words_stand_where_their_cells_are() {
        let plain = |x: usize, y: usize, cells: usize, text: &str| {
            format!(
                "<text x=\"{}\" y=\"{}\" textLength=\"{}\" lengthAdjust=\"spacingAndGlyphs\">{text}</text>",
                x * WIDTH,
                y * HEIGHT + BASELINE,
                cells * WIDTH
            )
        };
        let expected = [
            plain(0, 0, 2, "ab"),
            plain(5, 0, 1, "c"),
            plain(1, 2, 3, "│ü…"),
        ];
        assert_eq!(elements("ab   c\n\n │ü…"), expected);
    }

    #[test]
    fn the_picture_is_as_large_as_the_terminal_and_nothing_lies_outside() {
        let svg = draw("top", &"x".repeat(30), (10, 2));
        assert!(svg.contains("viewBox=\"0 0 114 62\""), "{svg}");
        assert!(svg.contains(">xxxxxxxxxx<"), "{svg}");
        assert_eq!(elements("a\nb\nc\nd").len(), 3);
    }

    #[test]
    fn markup_is_escaped() {
        let elements = elements("a<b>&\"c\"");
        assert!(
            elements[0].ends_with(">a&lt;b&gt;&amp;\"c\"</text>"),
            "{elements:?}"
        );
        let svg = draw("< & >", "", (1, 1));
        assert!(svg.contains("<title>&lt; &amp; &gt;</title>"), "{svg}");
    }

    #[test]
    fn colours_of_all_three_kinds_are_known() {
        for (sgr, colour) in [
            ("31", PALETTE[1].hex()),
            ("92", PALETTE[10].hex()),
            ("38;5;3", PALETTE[3].hex()),
            ("38;5;196", "#ff0000".to_owned()),
            ("38;5;244", "#808080".to_owned()),
            ("38;2;1;2;254", "#0102fe".to_owned()),
        ] {
            assert_eq!(look(sgr), format!("fill=\"{colour}\""), "{sgr}");
        }
        assert_eq!(look("31;39"), "");
    }

    #[test]
    fn attributes_begin_and_end() {
        assert_eq!(look("1"), "font-weight=\"bold\"");
        assert_eq!(look("1;2;22"), "");
        assert_eq!(look("2"), "fill-opacity=\"0.6\"");
        assert_eq!(
            look("3;4"),
            "font-style=\"italic\" text-decoration=\"underline\""
        );
        assert_eq!(look("4:3"), "text-decoration=\"underline\"");
        for all_off in ["1;3;4;7;31;42;0", "1;7;", "1;4m\x1b["] {
            assert_eq!(look(all_off), "", "{all_off}");
        }
    }

    #[test]
    fn a_style_lasts_over_the_end_of_the_line() {
        let elements = elements("\x1b[1ma\nb\x1b[0mc");
        let bold = |element: &String| element.contains("bold");
        let bold: Vec<bool> = elements.iter().map(bold).collect();
        assert_eq!(bold, [true, true, false]);
    }

    #[test]
    fn backgrounds_lie_below_blanks_too() {
        let elements = elements("a\x1b[44m b \x1b[0m");
        let rectangle = format!(
            "<rect x=\"9\" y=\"0\" width=\"27\" height=\"19\" fill=\"{}\"/>",
            PALETTE[4].hex()
        );
        assert_eq!(elements[0], rectangle);
        assert_eq!(elements.len(), 3, "{elements:?}");
    }

    #[test]
    fn reverse_swaps_the_colours_of_the_terminal_too() {
        let drawn = elements("\x1b[7mab");
        assert!(drawn[0].contains(&FOREGROUND.hex()), "{drawn:?}");
        assert_eq!(look("7"), format!("fill=\"{}\"", BACKGROUND.hex()));
        assert_eq!(look("7;31;42"), format!("fill=\"{}\"", PALETTE[2].hex()));
    }

    #[test]
    fn block_elements_are_bars_on_the_ground() {
        let bar = |x: usize, y: usize, height: usize| {
            let colour = PALETTE[6].hex();
            format!("<rect x=\"{x}\" y=\"{y}\" width=\"9\" height=\"{height}\" fill=\"{colour}\"/>")
        };
        let expected = [bar(0, 16, 3), bar(9, 9, 10), bar(18, 0, 19)];
        assert_eq!(elements("\x1b[36m▁▄█"), expected);
    }

    #[test]
    fn other_escapes_and_control_characters_leave_nothing() {
        let drawn = elements("\x1b[?25la\x1b=b\x0e\x0fc\x1b[2;3Hd\x1b[99;999me\x1b");
        assert_eq!(drawn.len(), 1, "{drawn:?}");
        assert!(drawn[0].ends_with(">abcde</text>"), "{drawn:?}");
        assert_eq!(plain("\x1b[1ma\x1b[0m b\nc"), "a b\nc\n");
    }
}
