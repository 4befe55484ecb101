package deployments

import (
	"fmt"
	"strings"
	"time"
)

// Verdict is what the ledger counts of one trial; the package comment says what each
// word means.
type Verdict struct {
	World, Change, Schedule string

	Published     int
	Kept          int
	Ignored       int
	Lost          int
	Disordered    int
	DoubleEffects int
	Dead          int
	// Note is a remark of the trial.
	Note string
	// Not says why the trial cannot exist here; all counts are zero then.
	Not  string
	Took time.Duration

	examples []string
}

func (v *Verdict) example(format string, arguments ...any) {
	if len(v.examples) < 8 {
		v.examples = append(v.examples, fmt.Sprintf(format, arguments...))
	}
}

// String returns all counts, and the first examples of what is wrong.
func (v Verdict) String() string {
	text := fmt.Sprintf("%d published, %d kept, %d ignored, %d lost, %d order broken, %d double effects, %d dead, in %v",
		v.Published, v.Kept, v.Ignored, v.Lost, v.Disordered, v.DoubleEffects, v.Dead, v.Took.Round(100*time.Millisecond))
	return strings.Join(append([]string{text}, v.examples...), "\n  ")
}

// Holds reports whether nothing is lost, out of order, doubled or dead.
func (v Verdict) Holds() bool {
	return v.Not != "" || v.Published > 0 && v.Lost == 0 && v.Disordered == 0 && v.DoubleEffects == 0 && v.Dead == 0
}

// cell is the verdict in a table.
func (v Verdict) cell(note func(string) string) string {
	if v.Not != "" {
		return "–" + note(v.Not)
	}
	text := fmt.Sprintf("%d / %d / %d of %d", v.Lost, v.Disordered, v.DoubleEffects, v.Published)
	if v.Kept > 0 {
		text += fmt.Sprintf(", kept %d", v.Kept)
	}
	if v.Ignored > 0 {
		text += fmt.Sprintf(", ignored %d", v.Ignored)
	}
	if v.Dead > 0 {
		text += fmt.Sprintf(", dead %d", v.Dead)
	}
	if v.Note != "" {
		text += note(v.Note)
	}
	return text
}

// Table is the verdicts in Markdown: a row for each change and schedule, a column for
// each world, and the notes below.
func Table(worlds []string, verdicts []Verdict) string {
	cells := make(map[[3]string]Verdict)
	for _, v := range verdicts {
		cells[[3]string{v.Change, v.Schedule, v.World}] = v
	}
	var notes []string
	note := func(text string) string {
		n := 0
		for n < len(notes) && notes[n] != text {
			n++
		}
		if n == len(notes) {
			notes = append(notes, text)
		}
		return fmt.Sprintf(" (%d)", n+1)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "| change | schedule | %s |\n| --- | --- |%s\n", strings.Join(worlds, " | "), strings.Repeat(" --- |", len(worlds)))
	for _, c := range changes() {
		for _, schedule := range Schedules() {
			row := []string{c.name, schedule}
			for _, world := range worlds {
				v, ran := cells[[3]string{c.name, schedule, world}]
				if !ran {
					row = append(row, "did not run")
					continue
				}
				row = append(row, v.cell(note))
			}
			fmt.Fprintf(&text, "| %s |\n", strings.Join(row, " | "))
		}
	}
	for n, one := range notes {
		fmt.Fprintf(&text, "\n%d. %s", n+1, one)
	}
	if len(notes) > 0 {
		text.WriteString("\n")
	}
	return text.String()
}
