package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/driver"
)

func subscriptionVerb(s *session) *cobra.Command {
	return group("subscription", "What is stored under the names of subscriptions",
		`What brokers and databases keep under the names of subscriptions: positions, dedup
keys, parked events, dead letters, and which event types their releases handle.`,
		subscriptionListVerb(s), subscriptionForgetTypeVerb(s), subscriptionDeleteVerb(s))
}

// storedSubscription is a name as `tidings subscription ls` shows it.
type storedSubscription struct {
	driver.StoredSubscription
	// Owner is "live" (instances run it), "declared" (the topology has it),
	// "nobody", or "unknown" where neither is known.
	Owner string `json:"owner"`
	// Handles is what its releases have declared; nil where that is not kept.
	Handles []driver.Declaration `json:"handles,omitempty"`
}

// records asks the parts that keep what releases declare.
func records(parts []part) (keepers []driver.Declarations) {
	for _, p := range parts {
		if keeper, ok := p.value.(driver.Declarations); ok {
			keepers = append(keepers, keeper)
		}
	}
	return keepers
}

// handled is what the releases of a subscription have declared.
func handled(ctx context.Context, parts []part, name string) (all []driver.Declaration, err error) {
	for _, keeper := range records(parts) {
		some, err := keeper.Declared(ctx, name)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// typesOf writes the event types of what was declared.
func typesOf(declared []driver.Declaration) string {
	if len(declared) == 0 {
		return "-"
	}
	types := make([]string, 0, len(declared))
	for _, one := range declared {
		types = append(types, one.Type)
	}
	slices.Sort(types)
	return strings.Join(slices.Compact(types), ", ")
}

// stored asks every part for its names.
func (s *session) stored(ctx context.Context, options driver.StoredOptions) (all []driver.StoredSubscription, parts []part, err error) {
	parts, err = s.parts(ctx, true)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range parts {
		keeper, ok := p.value.(driver.Keeper)
		if !ok {
			continue
		}
		found, err := keeper.StoredSubscriptions(ctx, options)
		if err != nil {
			return nil, nil, err
		}
		all = driver.MergeStored(all, found)
	}
	return all, parts, nil
}

func ownerOf(one *driver.StoredSubscription, topology *driver.Topology) string {
	switch {
	case one.Instances > 0:
		return "live"
	case topology.Owned(one.Name):
		return "declared"
	case one.Instances == 0 || !isEmpty(topology):
		return "nobody"
	}
	return "unknown"
}

func subscriptionListVerb(s *session) *cobra.Command {
	var flags topologyFlags
	var options driver.StoredOptions
	command := &cobra.Command{
		Use: "ls", Short: "Lists stored names, with position, lag and owner", Args: cobra.NoArgs,
		Long: `Lists the names under which anything is stored: how many instances run it, how many
events it is behind, when it was last heard of, how much is parked, dead or kept for
dedup, and which event types its releases have declared that they handle. A dash means that it is not known here.

The owner is live (instances run it), declared (--topology has it, also as a former
name), nobody, or unknown (this broker does not say who is alive, and no topology
was given). What nobody owns is renamed with FormerNames, or deleted.`,
		Example: "  tidings subscription ls\n  tidings subscription ls --topology topology.json --prefix billing.",
	}
	flags.register(command)
	command.Flags().StringVar(&options.Prefix, "prefix", "", "only names that begin so, for example billing.")
	command.RunE = s.do(func(ctx context.Context, _ []string) error {
		topology, err := flags.read(s)
		if err != nil {
			return err
		}
		options.Count = true
		found, parts, err := s.stored(ctx, options)
		if err != nil {
			return err
		}
		list := make([]storedSubscription, 0, len(found))
		for n := range found {
			declared, err := handled(ctx, parts, found[n].Name)
			if err != nil {
				return err
			}
			list = append(list, storedSubscription{found[n], ownerOf(&found[n], &topology), declared})
		}
		return s.print(map[string]any{"subscriptions": list}, func(w io.Writer) {
			if len(list) == 0 {
				printf(w, "Nothing is stored under any name.\n")
				return
			}
			printf(w, "NAME\tOWNER\tINSTANCES\tLAG\tLAST SEEN\tPARKED\tDEAD\tDEDUP KEYS\tPOSITION\tHANDLES\n")
			for _, one := range list {
				printf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", one.Name, one.Owner, known(int64(one.Instances)), known(one.Lag), moment(one.LastSeen),
					known(one.Parked), known(one.DeadLetters), known(one.Keys), one.Position, typesOf(one.Handles))
			}
		})
	})
	return command
}

// known writes a number that may be unknown.
func known(n int64) string {
	if n < 0 {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

func subscriptionForgetTypeVerb(s *session) *cobra.Command {
	var yes bool
	command := &cobra.Command{
		Use: "forget-type NAME TYPE", Short: "Takes an event type out of what a subscription handles", Args: cobra.ExactArgs(2),
		Long: `Takes an event type out of the record of what the releases of a subscription handle.
An instance without a reaction to the type then finishes its events unseen, those that
it holds too. When it was the last type of its channel, the position there is deleted
with it: a release that brings it back begins at its own StartAt.

Do so when no release that handles the type runs or will run again. An instance that
handles it adds it again when it starts. Without --yes it only says what there is.`,
		Example: "  tidings subscription forget-type billing.view billing.invoice.sent\n  tidings subscription forget-type billing.view billing.invoice.sent --yes",
	}
	command.Flags().BoolVar(&yes, "yes", false, "forget it; without it nothing is changed")
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		name, eventType := arguments[0], arguments[1]
		parts, err := s.parts(ctx, true)
		if err != nil {
			return err
		}
		keepers := records(parts)
		if len(keepers) == 0 {
			return fmt.Errorf("driver %s keeps no record of what subscriptions handle: there is nothing to forget", s.config().DriverName())
		}
		declared, err := handled(ctx, parts, name)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(declared, func(one driver.Declaration) bool { return one.Type == eventType }) {
			return fmt.Errorf("no release of %s has declared %s: it has %s", name, eventType, typesOf(declared))
		}
		if yes {
			for _, keeper := range keepers {
				if _, err := keeper.ForgetType(ctx, name, eventType); err != nil {
					return err
				}
			}
		}
		return s.print(map[string]any{"subscription": name, "type": eventType, "dryRun": !yes}, func(w io.Writer) {
			if yes {
				printf(w, "Forgotten: %s handles %s. Instances without a reaction to it finish its events unseen within some seconds.\n", name, eventType)
				return
			}
			printf(w, "Would be forgotten: %s handles %s.\nNothing was changed: say --yes to forget it.\n", name, eventType)
		})
	})
	return command
}

func subscriptionDeleteVerb(s *session) *cobra.Command {
	var yes bool
	command := &cobra.Command{
		Use: "delete NAME", Short: "Deletes everything that is stored under a name", Args: cobra.ExactArgs(1),
		Long: `Deletes everything that is stored under a name: its position (the group on Kafka,
groups on Redis Streams, queues behind topics on SQS, positions in SQL), leases,
dedup keys, epochs, parked events and dead letters. What it had not handled is not
handled any more.

Without --yes it only says what there is. It refuses while instances are alive
under the name. For a subscription that was renamed, say the former name in
FormerNames of the new one first: then its place is taken over and nothing is lost.`,
		Example: "  tidings subscription delete billing.old-name\n  tidings subscription delete billing.old-name --yes",
	}
	command.Flags().BoolVar(&yes, "yes", false, "delete; without it nothing is changed")
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		name := arguments[0]
		found, parts, err := s.stored(ctx, driver.StoredOptions{Prefix: name, Count: true})
		if err != nil {
			return err
		}
		n := slices.IndexFunc(found, func(one driver.StoredSubscription) bool { return one.Name == name })
		if n < 0 {
			return fmt.Errorf("%w %s: `tidings subscription ls` lists the names", errNotStored, name)
		}
		one := found[n]
		if one.Instances > 0 {
			return fmt.Errorf("%s has %d instances: stop them first: %w", name, one.Instances, driver.ErrInUse)
		}
		deleted := []string{}
		if yes {
			for _, p := range parts {
				keeper, ok := p.value.(driver.Keeper)
				if !ok {
					continue
				}
				gone, err := keeper.DeleteSubscription(ctx, name)
				deleted = append(deleted, gone...)
				if err != nil {
					return fmt.Errorf("deleted so far: %q: %w", deleted, err)
				}
			}
		}
		value := map[string]any{"subscription": one, "dryRun": !yes, "deleted": deleted}
		return s.print(value, func(w io.Writer) {
			if yes {
				printf(w, "Deleted of %s:\n  %s\n", name, strings.Join(deleted, "\n  "))
				return
			}
			printf(w, "Would be deleted of %s:\n  behind\t%s events\n  parked\t%s\n  dead letters\t%s\n  dedup keys\t%s\n  position\t%s\nNothing was changed: say --yes to delete it.\n",
				name, known(one.Lag), known(one.Parked), known(one.DeadLetters), known(one.Keys), one.Position)
		})
	})
	return command
}

var errNotStored = fmt.Errorf("nothing is stored under the name")
