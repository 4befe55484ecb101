package tidings_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/memory"
	storememory "github.com/tidings-go/tidings/store/memory"
)

type described struct {
	Name string `json:"name"`
}

var (
	opened  = tidings.Define[described]("accounts.account.opened", 1, tidings.Once)
	closed  = tidings.Define[described]("accounts.account.closed", 1, tidings.Once, tidings.Channel("accounts.account"))
	foreign = tidings.Define[described]("mail.letter.posted", 1, tidings.Once)
)

func unheard(context.Context, tidings.Event[described]) error { return nil }

func TestDescribe(t *testing.T) {
	bus := tidings.New(memory.New(nil), &tidings.Options{Source: "bank", AnnounceFailures: true, Logger: slog.New(slog.DiscardHandler)})
	accounts := bus.Module("accounts")
	if err := accounts.Publishes(opened, closed); err != nil {
		t.Fatal(err)
	}
	bus.Module("mail").Subscribe("welcome", &tidings.SubscribeOptions{FormerNames: []string{"greet", "letters.greet"}}, opened.On(unheard))
	want := tidings.Topology{
		Format: 1, Source: "bank",
		Channels: []driver.TopologyChannel{
			{Name: "accounts.account", Types: []string{"accounts.account.closed"}, Published: true},
			{Name: "accounts.account.opened", Types: []string{"accounts.account.opened"}, Published: true},
			{Name: "tidings.handler.failed", Types: []string{"tidings.handler.failed"}, Published: true},
		},
		Subscriptions: []driver.TopologySubscription{
			{Name: "mail.welcome", FormerNames: []string{"mail.greet", "letters.greet"}, Channels: []string{"accounts.account.opened"}, Types: []string{"accounts.account.opened"}},
		},
	}
	got := bus.Describe()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	var back tidings.Topology
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, want) || back.Check() != nil {
		t.Errorf("%s: %v, %v", text, err, back.Check())
	}
	if err := accounts.Publishes(foreign); !errors.Is(err, tidings.ErrForeignEvent) {
		t.Errorf("another module's: %v", err)
	}
	if err := accounts.Publishes(nil); err == nil {
		t.Error("nil was accepted")
	}
	// Both are complaints of Run, too.
	err = bus.Run(t.Context())
	if refused, ok := errors.AsType[*tidings.ConfigurationError](err); !ok || len(refused.Complaints) != 2 {
		t.Errorf("%v", err)
	}
}

// keepsNames is a durable driver that keeps something under names, and cannot
// rename it.
type keepsNames struct {
	driver.Driver
	features driver.Features
}

func (k keepsNames) Name() string              { return "carrier-pigeon" }
func (k keepsNames) Features() driver.Features { return k.features }

// renames can, and says what it is asked.
type renames struct {
	keepsNames
	calls  []string
	err    error
	stored []driver.StoredSubscription
}

func (r *renames) Rename(_ context.Context, former string, s driver.Subscription) (int64, error) {
	r.calls = append(r.calls, former+" to "+s.Name)
	return 1, r.err
}

func (r *renames) StoredSubscriptions(_ context.Context, o driver.StoredOptions) (found []driver.StoredSubscription, err error) {
	for _, s := range r.stored {
		if strings.HasPrefix(s.Name, o.Prefix) {
			found = append(found, s)
		}
	}
	return found, nil
}

func (r *renames) DeleteSubscription(context.Context, string) ([]string, error) { return nil, nil }

func refused(t *testing.T, d driver.Driver, options *tidings.SubscribeOptions) string {
	t.Helper()
	bus := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler)})
	bus.Module("mail").Subscribe("welcome", options, opened.On(unheard))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := bus.Run(ctx)
	if err == nil {
		t.Fatal("it runs")
	}
	return err.Error()
}

// Each complaint names the driver, the subscription, the need, and what satisfies
// it.
func TestRequirementsNameWhatHelps(t *testing.T) {
	weak := func(f driver.Features) driver.Driver {
		f.Values = true
		return keepsNames{memory.New(nil), f}
	}
	all := []string{"kafka", "postgres", "redis-streams", "sqlite", "sqs"}
	for name, test := range map[string]struct {
		features driver.Features
		options  tidings.SubscribeOptions
		want     []string
	}{
		"durable": {driver.Features{}, tidings.SubscribeOptions{RequireDurable: true}, append(all, "RequireDurable")},
		"order":   {driver.Features{}, tidings.SubscribeOptions{RequireOrder: true}, append(all, "RequireOrder", "in-memory")},
		"dedup":   {driver.Features{}, tidings.SubscribeOptions{RequireDedup: true}, []string{"RequireDedup", "Options.Claims", "store/postgres", "EVENT_CLAIMS"}},
		"delay":   {driver.Features{}, tidings.SubscribeOptions{RequireDelay: time.Hour}, []string{"RequireDelay 1h0m0s", "sqs"}},
		"longer":  {driver.Features{MaxDelay: time.Minute}, tidings.SubscribeOptions{RequireDelay: time.Hour}, []string{"RequireDelay 1h0m0s", "1m0s at most", "sqs"}},
		"names":   {driver.Features{Durable: true}, tidings.SubscribeOptions{FormerNames: []string{"greet"}, StartAt: tidings.StartNow}, []string{"FormerNames", "cannot be renamed", "mail.greet"}},
	} {
		t.Run(name, func(t *testing.T) {
			said := refused(t, weak(test.features), &test.options)
			for _, word := range append(test.want, "subscription mail.welcome", "carrier-pigeon") {
				if !strings.Contains(said, word) {
					t.Errorf("it does not say %q: %s", word, said)
				}
			}
		})
	}
	if said := refused(t, weak(driver.Features{MaxDelay: time.Hour}), &tidings.SubscribeOptions{RequireDelay: time.Hour, RequireDurable: true}); strings.Contains(said, "RequireDelay") {
		t.Errorf("an hour is enough: %s", said)
	}
}

func TestFormerNames(t *testing.T) {
	subscribe := func(d *renames, names ...string) (warnings []string, err error) {
		bus := tidings.New(d, &tidings.Options{Logger: slog.New(slog.DiscardHandler), Observers: []tidings.Observer{warned{&warnings}}, DeadLetters: &storememory.DeadLetters{}})
		bus.Module("mail").Subscribe("welcome", &tidings.SubscribeOptions{FormerNames: names}, opened.On(unheard))
		bus.Module("mail").Subscribe("other", nil, opened.On(unheard))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- bus.Run(ctx) }()
		ready := bus.Ready(ctx)
		cancel()
		return warnings, errors.Join(ready, <-ended)
	}
	newDriver := func() *renames {
		return &renames{keepsNames: keepsNames{memory.New(nil), driver.Features{Durable: true, Ordered: true, Values: true, FanOut: true}}}
	}
	d := newDriver()
	d.stored = []driver.StoredSubscription{{Name: "mail.greet"}, {Name: "mail.lost"}, {Name: "mail.alive", Instances: 2}, {Name: "mail.other"}, {Name: "billing.lost"}}
	warnings, err := subscribe(d, "greet", "letters.greet")
	if err != nil || !reflect.DeepEqual(d.calls, []string{"mail.greet to mail.welcome", "letters.greet to mail.welcome"}) {
		t.Errorf("%v: %v", d.calls, err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "mail.lost") || !strings.Contains(warnings[0], "FormerNames") {
		t.Errorf("names that nobody has: %q", warnings)
	}
	d = newDriver()
	d.err = driver.ErrInUse
	if _, err := subscribe(d, "greet"); !errors.Is(err, tidings.ErrInUse) || !strings.Contains(err.Error(), "stop every instance") {
		t.Errorf("while it is alive: %v", err)
	}
	for name, want := range map[string]string{"Greet": "is none", "a.b.c": "is none", "welcome": "its former name is its name", "other": "is a name of subscription mail.other"} {
		if _, err := subscribe(newDriver(), name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type warned struct{ texts *[]string }

func (w warned) Observe(_ context.Context, o tidings.Observation) {
	if o.Kind == tidings.Reported && o.Report.Kind == driver.ReportWarning {
		*w.texts = append(*w.texts, o.Report.Text)
	}
}
