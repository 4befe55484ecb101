package faults

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// SilenceVerdict is what was measured and counted in one silence.
type SilenceVerdict struct {
	Verdict
	Silence Silence
	Server  string
	// Recovered is how long after the silence began, or ended where all were silent
	// and new connections too, the last aggregate flowed again.
	Recovered time.Duration
	// Unready is how long after it began the last instance said that it was not
	// ready; 0: none said so. Ready is how long after it began, or ended, the last
	// said that it was.
	Unready, Ready time.Duration
	// Ended is how long after SIGTERM the last process had ended.
	Ended time.Duration
	// Broken says what does not hold.
	Broken []string
}

// String returns what was measured in a line.
func (v *SilenceVerdict) String() string {
	return fmt.Sprintf("%s, %s silent, %v: recovered %v, not ready %v, ready %v, ended %v; %v", v.Driver, v.Server, v.Silence, v.Recovered, v.Unready, v.Ready, v.Ended, v.Verdict)
}

// SilenceHeader is the head of the table that [SilenceTable] makes rows of.
const SilenceHeader = `| driver | silent | during | for | connections | recovered | not ready | ready | ended | published | lost | order broken | double effects | |
| --- | --- | --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- |`

// SilenceTable returns rows of Markdown, one for the three directions of a silence.
// Figures are seconds: to the server, from the server, both ways.
func SilenceTable(all []SilenceVerdict) string {
	rows := make(map[string][]SilenceVerdict)
	var keys []string
	for _, v := range all {
		s := v.Silence
		key := strings.Join([]string{v.Driver, v.Server, s.During, s.who(), s.connections()}, " | ")
		if s.During == Killed {
			key = strings.Join([]string{v.Driver, v.Server, s.During, s.Role + " " + string(s.Point), "new ones too"}, " | ")
		}
		if rows[key] == nil {
			keys = append(keys, key)
		}
		rows[key] = append(rows[key], v)
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(order(rows[a][0]), order(rows[b][0])), cmp.Compare(a, b))
	})
	var text strings.Builder
	text.WriteString(SilenceHeader + "\n")
	for _, key := range keys {
		fmt.Fprintf(&text, "| %s | %s |\n", key, silenceCells(rows[key]))
	}
	return text.String()
}

// order sorts rows: by driver and server, then by what happens in time.
func order(v SilenceVerdict) string {
	during := slices.Index([]string{Starting, Working, Stopping, Killed}, v.Silence.During)
	return fmt.Sprintf("%s|%s|%d|%v|%v", v.Driver, v.Server, during, v.Silence.All, v.Silence.Dead)
}

func silenceCells(row []SilenceVerdict) string {
	slices.SortFunc(row, func(a, b SilenceVerdict) int { return cmp.Compare(a.Silence.Direction, b.Silence.Direction) })
	times := func(of func(*SilenceVerdict) time.Duration) string {
		var cells []string
		for n := range row {
			if d := of(&row[n]); d > 0 {
				cells = append(cells, fmt.Sprintf("%.1f", d.Seconds()))
			} else {
				cells = append(cells, "-")
			}
		}
		if !slices.ContainsFunc(cells, func(c string) bool { return c != "-" }) {
			return ""
		}
		return strings.Join(cells, " / ")
	}
	sum := func(of func(*SilenceVerdict) int) string {
		n := 0
		for at := range row {
			n += of(&row[at])
		}
		return fmt.Sprint(n)
	}
	effects := "no inbox"
	if row[0].WithEffects {
		effects = sum(func(v *SilenceVerdict) int { return v.DoubleEffects })
	}
	var notes []string
	for _, v := range row {
		for _, note := range append(v.Broken, v.Note) {
			if note != "" && !slices.Contains(notes, note) {
				notes = append(notes, note)
			}
		}
	}
	return strings.Join([]string{
		times(func(v *SilenceVerdict) time.Duration { return v.Recovered }), times(func(v *SilenceVerdict) time.Duration { return v.Unready }),
		times(func(v *SilenceVerdict) time.Duration { return v.Ready }), times(func(v *SilenceVerdict) time.Duration { return v.Ended }),
		sum(func(v *SilenceVerdict) int { return v.Published }), sum(func(v *SilenceVerdict) int { return v.Lost }),
		sum(func(v *SilenceVerdict) int { return v.Disordered }), effects, strings.Join(notes, "; "),
	}, " | ")
}
