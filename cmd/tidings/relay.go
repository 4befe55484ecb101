package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/setup"
)

func relayVerb(s *session) *cobra.Command {
	var options outbox.Options
	var every time.Duration
	command := &cobra.Command{
		Use: "relay", Short: "Sends what the outbox holds to the broker, until it is ended", Args: cobra.NoArgs,
		Long: `Sends the events of the outbox in DATABASE_URL (or SQLITE_PATH) to the broker that
EVENT_DRIVER names, until SIGTERM or SIGINT: then it finishes the sends that are
under way and gives its share to the other relays.

Any number may run, beside relays inside the application too: they divide the
outbox. Events of one aggregate keep their order. It needs no Go types of the
application: an outbox holds finished messages.

On the drivers postgres and sqlite there is nothing to relay: subscriptions read
the outbox themselves.`,
		Example: "  EVENT_DRIVER=kafka KAFKA_BROKERS=… DATABASE_URL=… tidings relay",
	}
	command.Flags().StringVar(&options.Group, "group", "", "what all relays of one outbox have in common (default relay)")
	command.Flags().IntVar(&options.Workers, "workers", 0, "sends under way at once (default 4)")
	command.Flags().IntVar(&options.Batch, "batch", 0, "most events of one send (default 500)")
	command.Flags().DurationVar(&options.Keep, "keep", 0, "keep sent events in the table outbox_sent for so long (default: delete them at once)")
	command.Flags().DurationVar(&every, "report", time.Minute, "how often to log backlog and rate; 0: never")
	command.RunE = s.do(func(ctx context.Context, _ []string) error {
		logger := s.logger()
		options.Logger = logger
		database, err := s.database(&setup.DatabaseOptions{KeepSent: options.Keep != 0})
		if err != nil {
			return err
		}
		queue, err := queueOf(database)
		if err != nil {
			return err
		}
		config := s.config()
		// The application's subscriptions are not here, so its claims are not needed.
		config.Claims = ""
		bus, err := setup.New(ctx, config, &setup.Options{Database: database, Bus: tidings.Options{Logger: logger, WithoutDedup: true}})
		if err != nil {
			return err
		}
		run, err := prepareRelay(bus, queue, &options)
		if err != nil {
			return errors.Join(err, bus.Close(context.WithoutCancel(ctx)))
		}
		logger.Info("relaying", "database", config.DatabaseAddress(), "driver", bus.DriverName(), "broker", config.BrokerAddress())
		reporting, stop := context.WithCancel(ctx)
		reported := make(chan struct{})
		go func() {
			defer close(reported)
			reportRelay(reporting, logger, queue, run, every)
		}()
		err = bus.Run(ctx)
		stop()
		<-reported
		logger.Info("ended")
		return err
	})
	return command
}

func prepareRelay(bus *tidings.Bus, queue outbox.Queue, options *outbox.Options) (*outbox.Relay, error) {
	if features := bus.Features(); features.Outbox || features.Values {
		return nil, usage("EVENT_DRIVER is %s, which needs no relay: name the broker that the events go to, such as kafka", bus.DriverName())
	}
	relay, err := outbox.NewRelay(queue, bus.Forward, options)
	if err != nil {
		return nil, usageError{err}
	}
	return relay, bus.Add(relay)
}

// reportRelay logs how far the relay is.
func reportRelay(ctx context.Context, logger *slog.Logger, queue outbox.Queue, relay *outbox.Relay, every time.Duration) {
	if every <= 0 {
		return
	}
	for wait(ctx, every) {
		status, err := queue.Status(ctx)
		if err != nil {
			continue // the relay says so
		}
		logger.Info("relay", "backlog", status.Backlog, "oldest", age(status.Oldest), "heldAggregates", status.Held, "sentPerSecond", relay.Rate())
	}
}
