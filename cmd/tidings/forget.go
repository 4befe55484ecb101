package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings/driver"
)

func forgetVerb(s *session) *cobra.Command {
	var yes bool
	var request driver.ForgetRequest
	command := &cobra.Command{
		Use: "forget AGGREGATE", Short: "Erases the data of one aggregate from every table", Args: cobra.ExactArgs(1),
		Long: `Erases the data of one aggregate (a user who asks for it, say) from every table of
tidings in the database: sent events that are kept, the log, dead letters with their
history, orders for its lanes.

Without --yes it only says what there is. It refuses while events of the aggregate
are not finished (not sent, not read by every subscription, parked), unless
--unfinished says that nobody shall handle them.

Dedup keys stay unless --keys is said: they hold event type and aggregate id, and no
payload, and without them an event that is delivered again is handled again.

It ends by saying what lies outside its reach: events on the broker and backups.`,
		Example: "  tidings forget user-4711\n  tidings forget user-4711 --yes\n  tidings forget user-4711 --yes --keys",
	}
	command.Flags().BoolVar(&yes, "yes", false, "erase; without it nothing is changed")
	command.Flags().BoolVar(&request.Unfinished, "unfinished", false, "erase events too that are not finished: nobody will handle them")
	command.Flags().BoolVar(&request.Keys, "keys", false, "erase the dedup keys too")
	command.RunE = s.do(func(ctx context.Context, arguments []string) error {
		if request.AggregateID = arguments[0]; request.AggregateID == "" {
			return usage("the id of the aggregate is empty")
		}
		request.Dry = !yes
		database, err := s.database(nil)
		if err != nil {
			return err
		}
		forgetter, ok := database.(driver.Forgetter)
		if !ok {
			return usage("a %T cannot forget an aggregate", database)
		}
		all, err := forgetter.ForgetAggregate(ctx, request)
		unfinished := errors.Is(err, driver.ErrUnfinished)
		if err != nil && !unfinished {
			return err
		}
		if all == nil {
			all = []driver.Forgotten{}
		}
		outside := outsideReach(s.config().DriverName())
		value := map[string]any{"dryRun": !yes || unfinished, "places": all, "outside": outside}
		printed := s.print(value, func(w io.Writer) {
			if len(all) == 0 {
				printf(w, "Nothing is stored of this aggregate.\n")
			}
			for _, f := range all {
				printf(w, "%s\t%d\t%s\n", f.Place, f.Count, f.What)
			}
			if (!yes || unfinished) && len(all) > 0 {
				printf(w, "Nothing was changed.\n")
			}
			printf(w, "Outside its reach:\n")
			for _, text := range outside {
				printf(w, "  %s\n", text)
			}
		})
		if unfinished {
			return fmt.Errorf("%w: wait until they are, or say --unfinished to give them up", driver.ErrUnfinished)
		}
		return printed
	})
	return command
}

// outsideReach is what holds events too and is not erased.
func outsideReach(driverName string) []string {
	var first []string
	switch driverName {
	case "kafka":
		first = []string{"Kafka: topics of events keep them until their retention ends, topics of dead letters for ever (delete records, or let keys expire in your encryption)"}
	case "sqs":
		first = []string{"SQS: queues and dead letter queues keep events for at most 14 days"}
	case "redis-streams":
		first = []string{"Redis: streams keep events until every group has finished them and the retention is over, streams of dead letters the newest; claims in Redis hold event type and aggregate id"}
	case "redis":
		first = []string{"Redis: pub/sub keeps nothing; streams of dead letters keep the newest"}
	}
	return append(first, "backups and replicas of the database, and files of logs", "what the application's own handlers have stored")
}
