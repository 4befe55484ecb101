package faults

import (
	"fmt"
	"os"
	"strings"
)

// Row is the verdict as a row of Markdown, in the columns of [Header].
func (v Verdict) Row() string {
	if v.NotProven != "" {
		return fmt.Sprintf("| %s | %s | | | | | | | | | | not proven here: %s |", v.Driver, v.Fault, v.NotProven)
	}
	effects := fmt.Sprint(v.DoubleEffects)
	if !v.WithEffects {
		effects = "no inbox"
	}
	cells := []string{
		v.Driver, v.Fault, fmt.Sprint(v.Hits), fmt.Sprint(v.Published), fmt.Sprint(v.Lost), fmt.Sprint(v.Disordered), fmt.Sprint(v.Overlaps),
		fmt.Sprintf("%d of %d", v.Duplicates, v.Bound), effects, fmt.Sprint(v.Phantoms), fmt.Sprint(v.Dead), v.Note,
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

// Header is the head of a table of rows.
const Header = `| driver | fault | times | published | lost | order broken | overlaps | duplicates of bound | double effects | phantoms | dead | |
| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --- |`

// WriteSection replaces what stands in a page between the two comments with the
// section's name.
func WriteSection(path, section, text string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("faults: %w", err)
	}
	begin, end := "<!-- "+section+": begin -->\n", "<!-- "+section+": end -->\n"
	before, rest, found := strings.Cut(string(page), begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		return fmt.Errorf("faults: %s has no section %q", path, section)
	}
	return os.WriteFile(path, []byte(before+begin+text+end+after), 0o644) //nolint:gosec // a page of the documentation
}
