package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/driver"
)

func doctorVerb(s *session) *cobra.Command {
	var flags topologyFlags
	var options driver.InspectOptions
	command := &cobra.Command{
		Use: "doctor", Short: "Compares what is declared and promised with what there is", Args: cobra.NoArgs,
		Long: `Looks at the broker and the database of the environment, and changes nothing:
topics, queues and tables that are missing, settings under which events can be lost
(min ISR 1, a queue without redrive, a Redis that evicts, fsync off), subscriptions
that lag or belong to nobody, an outbox that nobody sends, clocks that differ.

A finding is broken (something declared does not work, or loses events), weak (it
works and keeps less than is promised) or a note. Exit status 3 says that there is
one that is broken or weak.

` + topologyHelp + `
Without it, only what is stored is looked at: nothing can be missing.`,
		Example: "  shop -describe > topology.json && tidings doctor --topology topology.json\n  tidings doctor --publish shop.order.placed --subscription mail.confirm=shop.order.placed\n  tidings doctor --json",
	}
	flags.register(command)
	command.Flags().Int64Var(&options.MaxLag, "max-lag", driver.DefaultMaxLag, "how many events a subscription that runs may be behind")
	command.RunE = s.do(func(ctx context.Context, _ []string) error {
		if options.MaxLag < 1 {
			return usage("--max-lag is %d: 1 or more", options.MaxLag)
		}
		topology, err := flags.read(s)
		if err != nil {
			return err
		}
		parts, err := s.parts(ctx, true)
		if err != nil {
			return err
		}
		findings := []driver.Finding{}
		var failures []string
		for _, p := range parts {
			inspector, ok := p.value.(driver.Inspector)
			if !ok {
				continue
			}
			found, err := inspector.Inspect(ctx, topology, options)
			findings = append(findings, found...)
			if err != nil {
				failures = append(failures, err.Error())
			}
		}
		findings = s.settle(findings, topology)
		err = s.print(map[string]any{"findings": findings, "failures": failures}, func(w io.Writer) { writeFindings(w, findings) })
		switch {
		case err != nil:
			return err
		case len(failures) > 0:
			return fmt.Errorf("not everything could be looked at: %s", strings.Join(failures, "; "))
		case slices.ContainsFunc(findings, func(f driver.Finding) bool { return f.Severity != driver.Note }):
			return errFindings
		}
		return nil
	})
	return command
}

var severities = []driver.Severity{driver.Broken, driver.Weak, driver.Note}

// settle sorts findings, the worst first, and leaves out what two parts say of the
// same name.
func (s *session) settle(findings []driver.Finding, topology driver.Topology) []driver.Finding {
	if config := s.config(); config.Claims == "" && config.DriverName() != "postgres" && config.DriverName() != "sqlite" {
		findings = append(findings, driver.Finding{
			Severity: driver.Note, Check: "claims-local", Subject: "dedup", What: "EVENT_CLAIMS is not set, so that each process remembers by itself what it has handled",
			Why: "after a restart or a move to another instance an event may be handled twice", Fix: "set EVENT_CLAIMS=database or redis, unless the application passes a store or its handlers are idempotent",
		})
	}
	if isEmpty(&topology) {
		findings = append(findings, driver.Finding{
			Severity: driver.Note, Check: "topology-unknown", Subject: "topology", What: "it was not said what the application declares",
			Why: "a topic or queue that is missing cannot be found", Fix: "pass --topology, or --publish and --subscription",
		})
	}
	seen := make(map[string]bool)
	findings = slices.DeleteFunc(findings, func(f driver.Finding) bool {
		key := f.Check + " " + f.Subject
		if strings.HasPrefix(f.Check, "subscription-") && seen[key] {
			return true
		}
		seen[key] = true
		return false
	})
	slices.SortStableFunc(findings, func(a, b driver.Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(severities, a.Severity), slices.Index(severities, b.Severity)), strings.Compare(a.Check, b.Check), strings.Compare(a.Subject, b.Subject))
	})
	return findings
}

func writeFindings(w io.Writer, findings []driver.Finding) {
	counts := make(map[driver.Severity]int)
	for _, f := range findings {
		counts[f.Severity]++
		printf(w, "%s: %s: %s (%s)\n    why: %s\n    fix: %s\n", f.Severity, f.Subject, f.What, f.Check, f.Why, f.Fix)
	}
	if counts[driver.Broken]+counts[driver.Weak] == 0 {
		printf(w, "Nothing is broken or weak.\n")
		return
	}
	printf(w, "%d broken, %d weak, %d notes.\n", counts[driver.Broken], counts[driver.Weak], counts[driver.Note])
}
