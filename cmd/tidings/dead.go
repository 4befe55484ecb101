package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/deadletter"
	"github.com/tidings-go/tidings/driver"
)

func deadVerb(s *session) *cobra.Command {
	return group("dead", "Dead letters: events that a subscription gave up on",
		`Dead letters that the application keeps in its database: events that a subscription
gave up on, with the failure. A retry is a mark: the subscription's own engine, in
the application, finds it within seconds and handles the event in its lane.`,
		deadListVerb(s), deadShowVerb(s), deadRetryVerb(s), deadDiscardVerb(s), deadPruneVerb(s))
}

func (s *session) letters() (*deadletter.Letters, error) {
	database, err := s.database(nil)
	if err != nil {
		return nil, err
	}
	by := ""
	if u, err := user.Current(); err == nil {
		by = u.Username
	}
	return deadletter.New(database.DeadLetters(), &deadletter.Options{By: by})
}

// deadFilter is what the flags of a filter say.
type deadFilter struct {
	subscription, eventType, fingerprint, state, since, until string
	limit                                                     int
}

func (f *deadFilter) flags(command *cobra.Command, limit int, what string) {
	flags := command.Flags()
	flags.StringVar(&f.subscription, "subscription", "", "letters of this subscription, module.name")
	flags.StringVar(&f.eventType, "type", "", "letters of this event type")
	flags.StringVar(&f.fingerprint, "fingerprint", "", "letters that failed in this way, as ls prints it")
	flags.StringVar(&f.state, "state", "", "open, retry, resolved or discarded")
	flags.StringVar(&f.since, "since", "", "letters that failed then or later: 2026-01-02T15:04:05Z, or an age such as 36h")
	flags.StringVar(&f.until, "until", "", "letters that failed before then")
	flags.IntVar(&f.limit, "limit", limit, what)
}

// filter is the filter, and whether it says anything.
func (f *deadFilter) filter(most int) (filter deadletter.Filter, said bool, err error) {
	if f.limit < 1 || f.limit > most {
		return filter, false, usage("--limit is %d: 1 to %d", f.limit, most)
	}
	switch state := driver.DeadLetterState(f.state); state {
	case "", driver.DeadLetterOpen, driver.DeadLetterRetry, driver.DeadLetterResolved, driver.DeadLetterDiscarded:
		filter.State = state
	default:
		return filter, false, usage("--state is %q: open, retry, resolved or discarded", f.state)
	}
	filter.Subscription, filter.Type, filter.Fingerprint = f.subscription, f.eventType, f.fingerprint
	if filter.Since, err = pastTime("--since", f.since); err != nil {
		return filter, false, err
	}
	if filter.Until, err = pastTime("--until", f.until); err != nil {
		return filter, false, err
	}
	return filter, filter != deadletter.Filter{}, nil
}

// pastTime reads a time, or an age as the time that long ago.
func pastTime(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if age, err := time.ParseDuration(text); err == nil && age >= 0 {
		return time.Now().Add(-age), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, usage("%s is %q: a time such as 2026-01-02T15:04:05Z, or an age such as 36h", flag, text)
	}
	return at, nil
}

// deadLetter is a letter as `tidings dead ls` shows it.
type deadLetter struct {
	Subscription string    `json:"subscription"`
	Key          string    `json:"key"`
	Type         string    `json:"type,omitempty"`
	ID           string    `json:"id"`
	AggregateID  string    `json:"aggregateId,omitempty"`
	State        string    `json:"state"`
	Times        int       `json:"times"`
	Attempts     int       `json:"attempts"`
	Reason       string    `json:"reason"`
	Error        string    `json:"error,omitempty"`
	Fingerprint  string    `json:"fingerprint"`
	FailedAt     time.Time `json:"failedAt"`
	ChangedAt    time.Time `json:"changedAt"`
	Note         string    `json:"note,omitempty"`
}

func showLetter(l *deadletter.Letter) deadLetter {
	return deadLetter{
		l.Subscription, l.Key, l.Type, l.ID, l.AggregateID, string(l.State), l.Times, l.Attempts, l.Reason, l.Err, l.Fingerprint, l.FailedAt.UTC(), l.ChangedAt.UTC(), l.Note,
	}
}

func printLetters(w io.Writer, letters []deadLetter) {
	printf(w, "SUBSCRIPTION\tKEY\tAGGREGATE\tSTATE\tFAILED\tTIMES\tREASON\tFINGERPRINT\tERROR\n")
	for _, l := range letters {
		printf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", l.Subscription, l.Key, l.AggregateID, l.State, moment(l.FailedAt), l.Times, l.Reason, l.Fingerprint, oneLine(l.Error, 60))
	}
}

func deadListVerb(s *session) *cobra.Command {
	var f deadFilter
	var after string
	var groups bool
	command := &cobra.Command{
		Use: "ls", Short: "Lists dead letters, those that failed last first", Args: cobra.NoArgs,
		Example: "  tidings dead ls --state open --subscription billing.ledger\n  tidings dead ls --groups",
	}
	f.flags(command, 50, "most letters to list")
	command.Flags().StringVar(&after, "after", "", "go on behind the page before, with what it printed")
	command.Flags().BoolVar(&groups, "groups", false, "count letters that failed in the same way, the largest groups first")
	command.RunE = s.do(func(ctx context.Context, _ []string) error {
		filter, _, err := f.filter(deadletter.MostOnPage)
		if err != nil {
			return err
		}
		letters, err := s.letters()
		if err != nil {
			return err
		}
		if groups {
			return s.listGroups(ctx, letters, filter, f.limit)
		}
		page, err := letters.List(ctx, filter, after, f.limit)
		if err != nil {
			return err
		}
		value := struct {
			Letters []deadLetter `json:"letters"`
			Next    string       `json:"next,omitempty"`
		}{make([]deadLetter, 0, len(page.Letters)), page.Next}
		for n := range page.Letters {
			value.Letters = append(value.Letters, showLetter(&page.Letters[n]))
		}
		return s.print(value, func(w io.Writer) {
			if len(value.Letters) == 0 {
				printf(w, "There is no such dead letter.\n")
				return
			}
			printLetters(w, value.Letters)
			if page.Next != "" {
				printf(w, "There are more: --after %q\n", page.Next)
			}
		})
	})
	return command
}

func (s *session) listGroups(ctx context.Context, letters *deadletter.Letters, filter deadletter.Filter, limit int) error {
	found, err := letters.Groups(ctx, filter, limit)
	if err != nil {
		return err
	}
	type group struct {
		Subscription string    `json:"subscription"`
		Type         string    `json:"type"`
		Fingerprint  string    `json:"fingerprint"`
		Count        int       `json:"count"`
		First        time.Time `json:"first"`
		Last         time.Time `json:"last"`
		Error        string    `json:"error"`
	}
	groups := make([]group, 0, len(found))
	for _, g := range found {
		groups = append(groups, group{g.Subscription, g.Type, g.Fingerprint, g.Count, g.First.UTC(), g.Last.UTC(), g.Err})
	}
	return s.print(map[string]any{"groups": groups}, func(w io.Writer) {
		printf(w, "COUNT\tSUBSCRIPTION\tTYPE\tFINGERPRINT\tFIRST\tLAST\tERROR\n")
		for _, g := range groups {
			printf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", g.Count, g.Subscription, g.Type, g.Fingerprint, moment(g.First), moment(g.Last), oneLine(g.Error, 60))
		}
	})
}

func deadShowVerb(s *session) *cobra.Command {
	var hide bool
	command := &cobra.Command{
		Use: "show SUBSCRIPTION KEY", Short: "Shows everything that is known of one letter", Args: cobra.ExactArgs(2),
		Long: `Shows one letter: its failure with every error behind it and the stack of a panic,
its envelope, its headers and raw bytes, and what happened to it. The bytes may hold
personal data: --without-body leaves them out.`,
		Example: "  tidings dead show billing.ledger billing.invoice.issued/0199…",
	}
	command.Flags().BoolVar(&hide, "without-body", false, "leave the raw bytes out")
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		letters, err := s.letters()
		if err != nil {
			return err
		}
		d, err := letters.Show(ctx, arguments[0], arguments[1])
		if err != nil {
			return err
		}
		return s.printDetails(d, hide)
	})
	return command
}

func (s *session) printDetails(d *deadletter.Details, hide bool) error {
	type change struct {
		At    time.Time `json:"at"`
		State string    `json:"state"`
		Note  string    `json:"note,omitempty"`
	}
	type envelope struct {
		Version       int       `json:"version"`
		ReadableFrom  int       `json:"readableFrom"`
		OccurredAt    time.Time `json:"occurredAt"`
		CorrelationID string    `json:"correlationId,omitempty"`
		CausationID   string    `json:"causationId,omitempty"`
		Source        string    `json:"source,omitempty"`
	}
	value := struct {
		deadLetter
		Channel    string            `json:"channel"`
		Position   string            `json:"position,omitempty"`
		Stack      string            `json:"stack,omitempty"`
		Envelope   *envelope         `json:"envelope,omitempty"`
		Unreadable string            `json:"unreadable,omitempty"`
		Headers    map[string]string `json:"headers,omitempty"`
		Body       json.RawMessage   `json:"body,omitempty"`
		History    []change          `json:"history"`
	}{deadLetter: showLetter(&d.Letter), Channel: d.Channel, Position: d.Position, Stack: d.Stack, History: []change{}}
	if e := d.Envelope; e != nil {
		value.Envelope = &envelope{e.Version, e.ReadableFrom, e.OccurredAt, e.CorrelationID, e.CausationID, e.Source}
	} else {
		value.Unreadable = d.EnvelopeErr.Error()
	}
	if len(d.Headers) > 0 {
		value.Headers = make(map[string]string)
		for _, h := range d.Headers {
			value.Headers[h.Name] = h.Value
		}
	}
	if !hide {
		value.Body = bodyJSON(d.Body)
	}
	for _, c := range d.History {
		value.History = append(value.History, change{c.At.UTC(), string(c.State), c.Note})
	}
	return s.print(value, func(w io.Writer) {
		l := value.deadLetter
		printf(w, "subscription\t%s\nkey\t%s\nchannel\t%s\naggregate\t%s\nposition\t%s\nstate\t%s since %s\n", l.Subscription, l.Key, value.Channel, l.AggregateID, value.Position, l.State, moment(l.ChangedAt))
		printf(w, "died\t%d times, last %s, after %d attempts (%s)\nfingerprint\t%s\n", l.Times, moment(l.FailedAt), l.Attempts, l.Reason, l.Fingerprint)
		if e := value.Envelope; e != nil {
			printf(w, "event\tversion %d, readable from %d, occurred %s\n", e.Version, e.ReadableFrom, moment(e.OccurredAt))
			printf(w, "correlation\t%s\ncausation\t%s\nsource\t%s\n", e.CorrelationID, e.CausationID, e.Source)
		} else {
			printf(w, "event\tcannot be read: %s\n", value.Unreadable)
		}
		for _, h := range d.Headers {
			printf(w, "header\t%s: %s\n", h.Name, h.Value)
		}
		for _, c := range value.History {
			printf(w, "history\t%s %s %s\n", moment(c.At), c.State, c.Note)
		}
		printf(w, "\nerror\n%s\n", l.Error)
		if value.Stack != "" {
			printf(w, "\nstack\n%s\n", value.Stack)
		}
		if !hide {
			printf(w, "\nbody, %d bytes\n%s\n", len(d.Body), d.Body)
		}
	})
}

// deadAction is what retry and discard have in common: letters by key, or those of
// a filter, which are shown first.
type deadAction struct {
	deadFilter
	note string
	rate float64
	yes  bool
	wait bool
}

func (s *session) choose(ctx context.Context, a *deadAction, arguments []string) (*deadletter.Selection, bool, error) {
	filter, said, err := a.filter(deadletter.MostSelected)
	if err != nil {
		return nil, false, err
	}
	byKey := len(arguments) > 0
	switch {
	case byKey && (said && filter != deadletter.Filter{Subscription: filter.Subscription} || filter.Subscription == ""):
		return nil, false, usage("keys are of one subscription: name it with --subscription, and no other filter")
	case !byKey && !said:
		return nil, false, usage("say which letters: keys with --subscription, or a filter such as --fingerprint")
	}
	letters, err := s.letters()
	if err != nil {
		return nil, false, err
	}
	if !byKey {
		chosen, err := letters.Select(ctx, filter, a.limit)
		return chosen, !a.yes, err
	}
	names := make([]deadletter.Name, len(arguments))
	for n, key := range arguments {
		names[n] = deadletter.Name{Subscription: filter.Subscription, Key: key}
	}
	chosen, err := letters.Pick(ctx, names...)
	return chosen, false, err
}

// preview shows what would be done.
func (s *session) preview(chosen *deadletter.Selection, verb string) error {
	value := struct {
		Count  int          `json:"count"`
		More   bool         `json:"more"`
		Sample []deadLetter `json:"sample"`
		Done   bool         `json:"done"`
	}{Count: chosen.Count(), More: chosen.More(), Sample: []deadLetter{}}
	for _, l := range chosen.Sample(10) {
		value.Sample = append(value.Sample, showLetter(&l))
	}
	return s.print(value, func(w io.Writer) {
		printLetters(w, value.Sample)
		printf(w, "%d letters match", value.Count)
		if value.More {
			printf(w, ", and more than --limit")
		}
		printf(w, ". Nothing is done: say --yes to %s them.\n", verb)
	})
}

func (s *session) act(ctx context.Context, a *deadAction, arguments []string, verb string, do func(*deadletter.Selection, *deadletter.ActOptions) (*deadletter.Result, error)) error {
	if a.rate < 0 {
		return usage("--per-second is %v: it must not be negative", a.rate)
	}
	chosen, previewed, err := s.choose(ctx, a, arguments)
	if err != nil {
		return err
	}
	if previewed {
		return s.preview(chosen, verb)
	}
	said := time.Now()
	result, failure := do(chosen, &deadletter.ActOptions{PerSecond: a.rate, Wait: a.wait, Progress: func(p deadletter.Progress) {
		if now := time.Now(); !s.json && (now.Sub(said) >= time.Second || p.Done == p.Total && !a.wait) {
			said = now
			printf(s.streams.err, "%d of %d, %d ended\n", p.Done, p.Total, p.Finished)
		}
	}})
	if result == nil {
		return failure
	}
	type item struct {
		Subscription string `json:"subscription"`
		Key          string `json:"key"`
		Outcome      string `json:"outcome"`
		State        string `json:"state,omitempty"`
		Error        string `json:"error,omitempty"`
	}
	value := struct {
		Counts map[string]int `json:"counts"`
		Items  []item         `json:"items"`
	}{map[string]int{}, []item{}}
	odd := 0
	for _, one := range result.Items {
		value.Counts[string(one.Outcome)]++
		value.Items = append(value.Items, item{one.Subscription, one.Key, string(one.Outcome), string(one.State), one.Err})
		switch one.Outcome {
		case deadletter.Marked, deadletter.Discarded, deadletter.Handled:
		default:
			odd++
		}
	}
	printed := s.print(value, func(w io.Writer) {
		for _, outcome := range []deadletter.Outcome{
			deadletter.Marked, deadletter.Discarded, deadletter.Handled, deadletter.DiedAgain, deadletter.Pending, deadletter.Changed, deadletter.NotFound, deadletter.Untouched,
		} {
			if n := value.Counts[string(outcome)]; n > 0 {
				printf(w, "%s\t%d\n", outcome, n)
			}
		}
		for n, one := range value.Items {
			if outcome := deadletter.Outcome(one.Outcome); outcome != deadletter.Marked && outcome != deadletter.Discarded && outcome != deadletter.Handled && outcome != deadletter.Untouched && n < 1000 {
				printf(w, "%s %s\t%s %s %s\n", one.Subscription, one.Key, one.Outcome, one.State, oneLine(one.Error, 80))
			}
		}
	})
	if err := errors.Join(failure, printed); err != nil {
		return err
	}
	if odd > 0 {
		return errFindings
	}
	return nil
}

func deadRetryVerb(s *session) *cobra.Command {
	var a deadAction
	command := &cobra.Command{
		Use: "retry [KEY...]", Short: "Tries letters again, by key or by filter",
		Long: `Marks letters for retry: by key, with --subscription, or all that match a filter. With
a filter it shows how many match, and does it with --yes: exactly those that it has
fixed then, and none that comes later. The application's instances do the rest.`,
		Example: "  tidings dead retry --subscription billing.ledger billing.invoice.issued/0199…\n  tidings dead retry --fingerprint 53a0… --yes --wait --note \"fixed in 1.2\"",
	}
	a.flags(command, 10_000, "most letters to retry")
	command.Flags().StringVar(&a.note, "note", "", "why, for the history")
	command.Flags().BoolVar(&a.wait, "wait", false, "wait until each is handled or has died again")
	a.actFlags(command)
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		return s.act(ctx, &a, arguments, "retry", func(chosen *deadletter.Selection, options *deadletter.ActOptions) (*deadletter.Result, error) {
			return chosen.Retry(ctx, a.note, options)
		})
	})
	return command
}

func (a *deadAction) actFlags(command *cobra.Command) {
	command.Flags().Float64Var(&a.rate, "per-second", 0, "most letters to mark in a second, 0 for no limit")
	command.Flags().BoolVar(&a.yes, "yes", false, "do it; without it a filter only shows what matches")
}

func deadDiscardVerb(s *session) *cobra.Command {
	var a deadAction
	command := &cobra.Command{
		Use: "discard [KEY...]", Short: "Gives letters up, with a reason",
		Long: `Gives letters up: by key, with --subscription, or all that match a filter, as retry
does. They stay in the database, with the reason, until they are pruned.`,
		Example: "  tidings dead discard --subscription billing.ledger --reason \"test data\" billing.invoice.issued/0199…",
	}
	a.flags(command, 10_000, "most letters to discard")
	command.Flags().StringVar(&a.note, "reason", "", "why, for the history; it must be said")
	a.actFlags(command)
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		if strings.TrimSpace(a.note) == "" {
			return usage("--reason is missing: it stays in the history")
		}
		return s.act(ctx, &a, arguments, "discard", func(chosen *deadletter.Selection, options *deadletter.ActOptions) (*deadletter.Result, error) {
			return chosen.Discard(ctx, a.note, options)
		})
	})
	return command
}

func deadPruneVerb(s *session) *cobra.Command {
	var state string
	var age time.Duration
	command := &cobra.Command{
		Use: "prune", Short: "Deletes letters that were resolved or discarded long ago", Args: cobra.NoArgs,
		Example: "  tidings dead prune --state resolved --older-than 2160h",
	}
	command.Flags().StringVar(&state, "state", "", "resolved or discarded")
	command.Flags().DurationVar(&age, "older-than", 0, "for how long they have been so, such as 2160h")
	command.RunE = s.do(func(ctx context.Context, _ []string) error {
		if state != string(driver.DeadLetterResolved) && state != string(driver.DeadLetterDiscarded) {
			return usage("--state is %q: resolved or discarded", state)
		}
		if age <= 0 {
			return usage("--older-than is missing: how old, such as 2160h")
		}
		letters, err := s.letters()
		if err != nil {
			return err
		}
		pruned, err := letters.Prune(ctx, driver.DeadLetterState(state), age)
		return errors.Join(err, s.print(map[string]int{"pruned": pruned}, func(w io.Writer) { printf(w, "%d letters deleted.\n", pruned) }))
	})
	return command
}
