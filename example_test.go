package tidings_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/memory"
)

// A contract lies in the events package of the module that owns it.
type UserCreatedPayload struct {
	UserID string `json:"userId"`
	Email  string `json:"email"`
	Name   string `json:"name"`
}

var UserCreated = tidings.Define[UserCreatedPayload]("identity.user.created", 1, tidings.Once)

// runBus runs a bus until the returned function is called.
func runBus(bus *tidings.Bus) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- bus.Run(ctx) }()
	if err := bus.Ready(ctx); err != nil {
		panic(err)
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			panic(err)
		}
	}
}

func quietBus(options *tidings.Options) *tidings.Bus {
	if options == nil {
		options = &tidings.Options{}
	}
	options.Logger = slog.New(slog.DiscardHandler)
	return tidings.New(memory.New(nil), options)
}

func Example() {
	bus := quietBus(nil) // tidings.New(memory.New(nil), nil), or setup.FromEnv

	billing := bus.Module("billing")
	billing.Subscribe("create-default-profile", nil, UserCreated.On(
		func(_ context.Context, e tidings.Event[UserCreatedPayload]) error {
			fmt.Println("billing profile for", e.Payload().Name)
			return nil
		}))
	stop := runBus(bus)
	defer stop()

	identity := bus.Module("identity")
	payload := UserCreatedPayload{UserID: "u-1", Email: "ada@example.com", Name: "Ada"}
	if err := identity.Publish(context.Background(), UserCreated.New("u-1", payload)); err != nil {
		fmt.Println(err)
	}
	// Output: billing profile for Ada
}

func ExampleDefine() {
	type RenamedPayload struct {
		UserID string `json:"userId"`
		Name   string `json:"name"`
	}
	renamed := tidings.Define[RenamedPayload]("identity.user.renamed", 1, tidings.Repeatable)
	fmt.Println(renamed, renamed.Occurrence(), renamed.Channel())
	// Output: identity.user.renamed v1 repeatable identity.user.renamed
}

// Version 2 has two names; events of version 1 are converted whenever one is
// read.
func ExampleFrom() {
	type NameV1 struct {
		Name string `json:"name"`
	}
	type NameV2 struct {
		First string `json:"first"`
		Last  string `json:"last"`
	}
	v1 := tidings.Define[NameV1]("identity.user.renamed", 1, tidings.Repeatable)
	v2 := tidings.Define[NameV2]("identity.user.renamed", 2, tidings.Repeatable,
		tidings.From(v1, func(old NameV1) (NameV2, error) {
			var p NameV2
			_, err := fmt.Sscan(old.Name, &p.First, &p.Last)
			return p, err
		}))

	bus := quietBus(nil)
	bus.Module("search").Subscribe("index-names", nil, v2.On(func(_ context.Context, e tidings.Event[NameV2]) error {
		fmt.Printf("v%d %+v\n", e.Version(), e.Payload())
		return nil
	}))
	stop := runBus(bus)
	defer stop()
	if err := bus.Publish(context.Background(), v1.New("u-1", NameV1{"Ada Lovelace"})); err != nil {
		fmt.Println(err)
	}
	// Output: v2 {First:Ada Last:Lovelace}
}

// Events that must keep their order across types share a channel; one
// subscription then handles them in one lane per aggregate.
func ExampleChannel() {
	type SubscriptionPayload struct {
		PlanID string `json:"planId"`
	}
	activated := tidings.Define[SubscriptionPayload]("billing.subscription.activated", 1, tidings.Repeatable, tidings.Channel("billing.subscription"))
	cancelled := tidings.Define[SubscriptionPayload]("billing.subscription.cancelled", 1, tidings.Repeatable, tidings.Channel("billing.subscription"))

	bus := quietBus(nil)
	show := func(_ context.Context, e tidings.Event[SubscriptionPayload]) error {
		fmt.Println(e.Type())
		return nil
	}
	bus.Module("reports").Subscribe("subscription-view", &tidings.SubscribeOptions{Concurrency: 32}, activated.On(show), cancelled.On(show))
	stop := runBus(bus)
	defer stop()
	err := bus.Publish(context.Background(), activated.New("s-1", SubscriptionPayload{"pro"}), cancelled.New("s-1", SubscriptionPayload{"pro"}))
	fmt.Println(err)
	// Output:
	// billing.subscription.activated
	// billing.subscription.cancelled
	// <nil>
}

// A module publishes its own events and no others.
func ExampleModule_Publish() {
	bus := quietBus(nil)
	stop := runBus(bus)
	defer stop()
	err := bus.Module("billing").Publish(context.Background(), UserCreated.New("u-1", UserCreatedPayload{}, tidings.WithID("e-1")))
	fmt.Println(err)
	fmt.Println(errors.Is(err, tidings.ErrForeignEvent))
	// Output:
	// tidings: publish identity.user.created e-1: not stored: tidings: event of another module: module "billing" publishes identity.user.created, which module "identity" owns
	// true
}

// What a handler returns decides what becomes of the event.
func ExamplePermanent() {
	d := memory.New(nil)
	bus := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	bus.Module("notifications").Subscribe("welcome", nil, UserCreated.On(
		func(_ context.Context, e tidings.Event[UserCreatedPayload]) error {
			if e.Payload().Email == "" {
				return tidings.Permanent(errors.New("there is no address to write to"))
			}
			return nil
		}))
	stop := runBus(bus)
	defer stop()
	if err := bus.Publish(context.Background(), UserCreated.New("u-1", UserCreatedPayload{UserID: "u-1"})); err != nil {
		fmt.Println(err)
	}
	for _, letter := range d.DeadLetters() {
		fmt.Println(letter.Subscription, letter.Reason, letter.Attempts, letter.Err)
	}
	// Output: notifications.welcome permanent 1 there is no address to write to
}

// RetryAfter says when to try again, in place of the backoff.
func ExampleRetryAfter() {
	bus := quietBus(nil)
	attempts := make(chan int, 2)
	bus.Module("notifications").Subscribe("welcome", nil, UserCreated.On(
		func(ctx context.Context, _ tidings.Event[UserCreatedPayload]) error {
			delivery, _ := tidings.DeliveryFrom(ctx)
			attempts <- delivery.Attempt
			if delivery.Attempt == 1 {
				return tidings.RetryAfter(errors.New("the mail server asks for patience"), 10*time.Millisecond)
			}
			return nil
		}))
	stop := runBus(bus)
	defer stop()
	if err := bus.Publish(context.Background(), UserCreated.New("u-1", UserCreatedPayload{})); err != nil {
		fmt.Println(err)
	}
	fmt.Println("attempts", <-attempts, <-attempts)
	// Output: attempts 1 2
}

// Publishing the same event values again is safe: they keep their ids.
func ExamplePublishError() {
	bus := quietBus(nil)
	stop := runBus(bus)
	defer stop()
	good, bad := UserCreated.New("u-1", UserCreatedPayload{}), UserCreated.New("", UserCreatedPayload{})
	err := bus.Publish(context.Background(), good, bad)
	if failed, ok := errors.AsType[*tidings.PublishError](err); ok {
		for _, result := range failed.Results {
			fmt.Printf("%q %s: %v\n", result.Event.AggregateID(), result.State, result.Err)
		}
	}
	// Output:
	// "u-1" not stored: another event of the same call was refused before anything was sent
	// "" not stored: the aggregate id is empty
}

// place is where something is declared, as errors write it.
var place = regexp.MustCompile(`\S+_test\.go:\d+`)

// Run reports everything that is wrong, before it starts anything, and where it is.
func ExampleBus_Run() {
	bus := quietBus(nil)
	bus.Module("billing").Subscribe("invoices", &tidings.SubscribeOptions{RequireDurable: true, RequireDedup: true},
		UserCreated.On(func(context.Context, tidings.Event[UserCreatedPayload]) error { return nil }))
	err := bus.Run(context.Background())
	fmt.Println(place.ReplaceAllString(err.Error(), "FILE:LINE"))
	// Output:
	// tidings: 2 complaints:
	//   - subscription billing.invoices at FILE:LINE: it says RequireDurable, and driver in-memory loses events with the process; use a durable driver (kafka, postgres, redis-streams, sqlite or sqs), or drop the requirement
	//   - subscription billing.invoices at FILE:LINE: it says RequireDedup, and with driver in-memory and these options dedup is process-local: it forgets at a restart; pass a durable claims store in Options.Claims (store/postgres, store/mysql, store/sqlite, store/redis; package setup: EVENT_CLAIMS), or drop the requirement
}

// A type that the subscription leaves out for good is said to be ignored: its events
// are finished unseen, also while another release handles them.
func ExampleContract_Ignored() {
	type plan struct {
		Name string `json:"name"`
	}
	channel := tidings.Channel("billing.plan")
	started := tidings.Define[plan]("billing.plan.started", 1, tidings.Repeatable, channel)
	renamed := tidings.Define[plan]("billing.plan.renamed", 1, tidings.Repeatable, channel)

	bus := quietBus(nil)
	bus.Module("billing").Subscribe("plans", nil, renamed.Ignored(), started.On(func(_ context.Context, e tidings.Event[plan]) error {
		fmt.Println("started", e.Payload().Name)
		return nil
	}))
	stop := runBus(bus)
	defer stop()
	if err := bus.Publish(context.Background(), renamed.New("p-1", plan{"gold"}), started.New("p-1", plan{"gold"})); err != nil {
		fmt.Println(err)
	}
	// Output: started gold
}

// Options.Wrap is called around each attempt of each handler.
func ExampleOptions_wrap() {
	bus := quietBus(&tidings.Options{Wrap: func(next tidings.HandleFunc) tidings.HandleFunc {
		return func(ctx context.Context, e tidings.DomainEvent) error {
			fmt.Println("before", e.Type())
			return next(ctx, e)
		}
	}})
	bus.Module("billing").Subscribe("profile", nil, UserCreated.On(func(context.Context, tidings.Event[UserCreatedPayload]) error { return nil }))
	stop := runBus(bus)
	defer stop()
	if err := bus.Publish(context.Background(), UserCreated.New("u-1", UserCreatedPayload{})); err != nil {
		fmt.Println(err)
	}
	// Output: before identity.user.created
}
