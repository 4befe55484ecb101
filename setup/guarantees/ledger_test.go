//go:build unix

package guarantees

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tidings-go/tidings/driver/drivertest/faults"
)

// said writes lines of a journal: "time word id", each about aggregate a.
func said(lines ...string) string {
	var text strings.Builder
	for _, line := range lines {
		words := strings.Fields(line)
		aggregate := "a"
		if words[1] == "fault" || words[1] == "died" {
			aggregate = ""
		}
		fmt.Fprintf(&text, "%s\t%s\t%s\t0\t0\t\t%s\n", words[1], words[2], aggregate, words[0])
	}
	return text.String()
}

// TestLedgerCounts shows that the ledger sees what it is there to see, and nothing
// else.
func TestLedgerCounts(t *testing.T) {
	steps := []faults.Step{{ID: "x", Aggregate: "a", Number: 0}, {ID: "y", Aggregate: "a", Number: 1}, {ID: "z", Aggregate: "a", Number: 2}}
	once := map[string]int{"x": 1, "y": 1, "z": 1}
	calm := said("1 received x", "2 started x", "3 handled x", "4 received y", "5 started y", "6 handled y", "7 received z", "8 started z", "9 handled z",
		"10 settled x", "11 settled y", "12 settled z")
	for name, c := range map[string]struct {
		journals map[string]string
		effects  map[string]int
		want     faults.Verdict
	}{
		"calm":               {map[string]string{"c1": calm}, once, faults.Verdict{}},
		"lost":               {map[string]string{"c1": strings.Replace(calm, "handled\tz", "failed\tz", 1)}, once, faults.Verdict{Lost: 1}},
		"without its effect": {map[string]string{"c1": calm}, map[string]int{"x": 1, "z": 1}, faults.Verdict{Lost: 1}},
		"an effect twice":    {map[string]string{"c1": calm}, map[string]int{"x": 1, "y": 2, "z": 1}, faults.Verdict{DoubleEffects: 1}},
		"out of order": {map[string]string{"c1": said("1 started y", "2 handled y", "3 started x", "4 handled x", "5 started z", "6 handled z")}, once,
			faults.Verdict{Disordered: 1}},
		"overlapping": {map[string]string{"c1": calm, "c2": said("4 received x", "4 started x", "7 deduplicated x")}, once,
			faults.Verdict{Overlaps: 1, Duplicates: 1}},
		"of a dead process": {map[string]string{"c0": said("-5 received x", "-4 started x"), "trial": said("-2 fault c0", "-1 died c0"), "c1": calm}, once,
			faults.Verdict{Bound: 1}},
		"of one that lives": {map[string]string{"c0": said("-5 received x", "-4 started x"), "c1": calm}, once, faults.Verdict{Overlaps: 3}},
		"a duplicate":       {map[string]string{"c1": calm + said("13 received x", "14 started x", "15 deduplicated x")}, once, faults.Verdict{Duplicates: 1}},
		"in hand":           {map[string]string{"c1": calm, "trial": said("11 fault c1")}, once, faults.Verdict{Bound: 1}}, // z; y was settled at 11
		"a phantom":         {map[string]string{"c1": calm + said("13 started ghost", "14 handled ghost")}, once, faults.Verdict{Phantoms: 1}},
		"published twice":   {map[string]string{"c1": calm, "p1": said("1 try x", "2 try x", "3 try y")}, once, faults.Verdict{Bound: 1}},
		"dead":              {map[string]string{"c1": strings.Replace(calm, "handled\tz", "dead\tz", 1)}, map[string]int{"x": 1, "y": 1}, faults.Verdict{Dead: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := newLedger(t).Count(name, c.journals, steps, c.effects)
			if err != nil {
				t.Fatal(err)
			}
			c.want.Published, c.want.WithEffects = len(steps), true
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}
