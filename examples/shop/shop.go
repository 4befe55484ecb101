package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/kafka"
	"github.com/tidings-go/tidings/driver/sqldb"
	"github.com/tidings-go/tidings/examples/shop/billing"
	"github.com/tidings-go/tidings/examples/shop/identity"
	"github.com/tidings-go/tidings/examples/shop/notifications"
	"github.com/tidings-go/tidings/outbox"
	"github.com/tidings-go/tidings/setup"
)

// shop is the modules of this process on one bus. A module that runs elsewhere
// is nil.
type shop struct {
	bus           *tidings.Bus
	database      *setup.SQL // nil: rows are in memory
	counts        *stats
	identity      *identity.Identity
	billing       *billing.Billing
	notifications *notifications.Notifications

	alive context.Context // ends with open's context, and when the bus has stopped
	stop  context.CancelFunc
	done  chan error
}

// part is what of the shop runs in a process, and how.
type part struct {
	modules []string
	log     *slog.Logger
	// observers are told of events beside the counts.
	observers []tidings.Observer
	// lease is how long the events of a process that was killed wait for it.
	// Defaults to the drivers' own.
	lease time.Duration
	// instance is a name on Kafka by which a process that comes back is known.
	instance string
}

// open wires the modules and runs the bus. It is all that knows where rows are
// and which driver runs, and it knows the driver by name only.
func open(ctx context.Context, getenv func(string) string, p part) (*shop, error) {
	s := &shop{counts: &stats{}, done: make(chan error, 1)}
	if err := s.wire(ctx, setup.Read(getenv), p); err != nil {
		if s.bus != nil {
			err = errors.Join(err, s.bus.Close(context.WithoutCancel(ctx)))
		}
		return nil, errors.Join(err, s.closeDatabase())
	}
	alive, stopped := context.WithCancelCause(ctx)
	s.alive = alive
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	go func() {
		err := s.bus.Run(running)
		stopped(errors.Join(errors.New("the bus has stopped"), err))
		s.done <- err
	}()
	joining, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := s.bus.Ready(joining); err != nil {
		if runErr := s.close(); runErr != nil {
			return nil, errors.Join(runErr, s.closeDatabase()) // it is the reason
		}
		return nil, errors.Join(fmt.Errorf("the bus is not ready: %w", err), s.closeDatabase())
	}
	return s, nil
}

// wire makes the bus and the modules. In a database each module's rows and events
// are stored together: what it publishes through the outbox, what it handles with
// the inbox. Without one both are as the driver has them.
func (s *shop) wire(ctx context.Context, config setup.Config, p part) (err error) {
	options := &setup.Options{Bus: tidings.Options{
		// Counts come first: what the story has told is counted.
		Logger: p.log, Source: "shop", Observers: append([]tidings.Observer{s.counts}, p.observers...),
		// On a broker, every module also handles what was published before it came.
		StartAt: tidings.StartBeginning,
	}}
	if p.lease > 0 {
		options.SQLDB = func(o *sqldb.Options) { o.LeaseTime = p.lease }
	}
	options.Kafka = func(o *kafka.Options) { o.InstanceID = p.instance }

	users, accounts, mails := identity.InMemory(), billing.InMemory(), notifications.InMemory()
	if !hasDatabase(config) {
		s.bus, err = setup.New(ctx, config, options)
	} else {
		config.DeadLetters = cmp.Or(config.DeadLetters, "database")
		options.Bus.RequireOutbox = true
		s.bus, s.database, err = setup.NewSQL(ctx, config, options)
	}
	if err != nil {
		return err
	}
	if db := s.database; db != nil {
		if err := makeTables(ctx, db); err != nil {
			return err
		}
		box, err := outbox.New(s.bus, db.Store, &outbox.Options{LeaseTime: p.lease, Logger: p.log})
		if err != nil {
			return err
		}
		users = identity.InDatabase(db.DB, box)
		accounts = billing.InDatabase(db.DB, box, db.Store)
		mails = notifications.InDatabase(db.DB, db.Store)
	}
	if slices.Contains(p.modules, "identity") {
		s.identity = identity.New(s.bus.Module("identity"), users)
	}
	if slices.Contains(p.modules, "billing") {
		s.billing = billing.New(s.bus.Module("billing"), accounts)
	}
	if slices.Contains(p.modules, "notifications") {
		s.notifications = notifications.New(s.bus.Module("notifications"), mails)
	}
	return nil
}

// hasDatabase reports whether rows are in a database. In memory events are lost
// with the process, and then rows that outlive it would be of no use.
func hasDatabase(config setup.Config) bool {
	return config.HasDatabase() && config.Driver != "" && config.Driver != "in-memory"
}

// makeTables makes the modules' tables. Tidings' own are made by setup.
func makeTables(ctx context.Context, db *setup.SQL) error {
	if _, err := db.ExecContext(ctx, identity.Schema+billing.Schema+notifications.Schema); err != nil {
		return fmt.Errorf("make the shop's tables: %w", err)
	}
	return nil
}

// close lets the bus finish what is in hand and returns its error. The database
// stays open, for whoever wants to look.
func (s *shop) close() error {
	s.stop()
	return <-s.done
}

func (s *shop) closeDatabase() error {
	if s.database == nil {
		return nil
	}
	return s.database.Close()
}

// summary is the stats of the bus and what the modules of this process have.
func (s *shop) summary(ctx context.Context) (summary, error) {
	sum := s.counts.summary()
	var errs []error
	if s.billing != nil {
		profiles, err := s.billing.Profiles(ctx)
		sum.Profiles = len(profiles)
		errs = append(errs, err)
	}
	if s.notifications != nil {
		sent, err := s.notifications.Sent(ctx)
		sum.Notifications = len(sent)
		errs = append(errs, err)
	}
	return sum, errors.Join(errs...)
}
