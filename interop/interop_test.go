package interop

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/codec"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/internal/testtime"
	"github.com/tidings-go/tidings/setup"
)

// userPayload and userCreated are the Go side's contract of the event that
// typescript/src/contracts.ts has.
type userPayload struct {
	UserID string `json:"userId"`
	Email  string `json:"email"`
	Name   string `json:"name"`
}

var userCreated = tidings.Define[userPayload]("identity.user.created", 1, tidings.Once,
	tidings.AggregateFrom(func(p userPayload) string { return p.UserID }))

var subscriptions = []string{"billing.create-default-profile", "notifications.welcome"}

var patience = testtime.Patience(time.Minute)

// program is the compiled TypeScript.
func program(t *testing.T) string {
	path := os.Getenv("TIDINGS_INTEROP_PROGRAM")
	if path == "" {
		t.Skip("TIDINGS_INTEROP_PROGRAM is not set: make interop builds it")
	}
	return path
}

// brokers are the variables of each driver, for both sides.
func brokers(t *testing.T) map[string]map[string]string {
	need := func(variable string) string {
		value := os.Getenv(variable)
		if value == "" {
			t.Fatalf("%s is not set: make interop starts the brokers", variable)
		}
		return value
	}
	return map[string]map[string]string{
		"kafka": {"KAFKA_BROKERS": need("KAFKA_BROKERS")},
		"redis": {"REDIS_URL": need("REDIS_URL")},
		// The TypeScript publisher says no message group, which a FIFO queue needs.
		"sqs": {"AWS_ENDPOINT_URL": need("TIDINGS_ELASTICMQ_URL"), "SQS_FIFO": "false"},
	}
}

// onEach runs a test on each broker, with a namespace of its own.
func onEach(t *testing.T, test func(t *testing.T, script, driver string, environment map[string]string)) {
	script := program(t)
	for name, environment := range brokers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			environment := maps.Clone(environment)
			environment["EVENT_DRIVER"] = name
			environment["EVENT_NAMESPACE"] = fmt.Sprintf("interop-%d", time.Now().UnixNano())
			test(t, script, name, environment)
		})
	}
}

func newBus(t *testing.T, environment map[string]string, options tidings.Options) *tidings.Bus {
	t.Helper()
	options.Logger = slog.New(slog.DiscardHandler)
	b, err := setup.New(t.Context(), setup.Read(func(name string) string { return environment[name] }), &setup.Options{Bus: options})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func node(script, command, driver string, environment map[string]string) *exec.Cmd {
	run := exec.Command("node", script, command, driver) //nolint:noctx // its end is a part of the test
	run.Env = os.Environ()
	for name, value := range environment {
		run.Env = append(run.Env, name+"="+value)
	}
	run.Stderr = os.Stderr
	return run
}

// told is one event as a TypeScript publisher says it.
type told struct {
	Form string `json:"form"` // "envelope" or "payload"
	userPayload
}

func user(n int) userPayload {
	return userPayload{UserID: fmt.Sprint("user-", n), Email: fmt.Sprintf("user%d@example.com", n), Name: fmt.Sprint("J\u00f6rg \U0001F600 ", n)}
}

func eventually(t *testing.T, what string, condition func() bool, state func() string) {
	t.Helper()
	deadline := time.After(patience)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !condition() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("not within %v: %s: %s", patience, what, state())
		}
	}
}

// What TypeScript publishes is handled in Go: the whole event and the payload alone,
// of two users each, by two subscriptions; what is sent again is recognised.
func TestTypeScriptToGo(t *testing.T) {
	onEach(t, func(t *testing.T, script, driverName string, environment map[string]string) {
		var mu sync.Mutex
		var handled []string
		suppressed := 0
		b := newBus(t, environment, tidings.Options{Observers: []tidings.Observer{observe(func(o tidings.Observation) {
			mu.Lock()
			defer mu.Unlock()
			switch o.Kind {
			case tidings.Deduplicated:
				suppressed++
			case tidings.DeadLettered:
				t.Errorf("a dead letter: %v", o)
			}
		})}})
		for _, name := range subscriptions {
			module, subscription, _ := strings.Cut(name, ".")
			options := &tidings.SubscribeOptions{EachInstance: driverName == "redis"}
			if driverName == "kafka" {
				options.StartAt = tidings.StartBeginning
			}
			b.Module(module).Subscribe(subscription, options, userCreated.On(func(_ context.Context, e tidings.Event[userPayload]) error {
				mu.Lock()
				defer mu.Unlock()
				p := e.Payload()
				if e.AggregateID() != p.UserID || e.Version() != 1 || e.Type() != "identity.user.created" || time.Since(e.OccurredAt()).Abs() > time.Minute {
					t.Errorf("event %s of %s version %d at %v", e.Type(), e.AggregateID(), e.Version(), e.OccurredAt())
				}
				handled = append(handled, fmt.Sprintf("%s %s %s %s", name, p.UserID, p.Email, p.Name))
				return nil
			}))
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		if err := b.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		said, err := json.Marshal([]told{
			{"envelope", user(1)}, {"payload", user(2)}, {"payload", user(3)}, {"envelope", user(4)},
			{"envelope", user(1)}, {"payload", user(2)}, // sent again
		})
		if err != nil {
			t.Fatal(err)
		}
		publishing := maps.Clone(environment)
		publishing["INTEROP_EVENTS"] = string(said)
		if err := node(script, "publish", driverName, publishing).Run(); err != nil {
			t.Fatalf("the TypeScript publisher: %v", err)
		}
		var want []string
		for _, name := range subscriptions {
			for n := 1; n <= 4; n++ {
				p := user(n)
				want = append(want, fmt.Sprintf("%s %s %s %s", name, p.UserID, p.Email, p.Name))
			}
		}
		got := func() string {
			mu.Lock()
			defer mu.Unlock()
			return fmt.Sprintf("%d suppressed, handled:\n%s", suppressed, strings.Join(slices.Sorted(slices.Values(handled)), "\n"))
		}
		wanted := fmt.Sprintf("%d suppressed, handled:\n%s", 2*len(subscriptions), strings.Join(want, "\n"))
		eventually(t, "all are handled once", func() bool { return got() == wanted }, got)
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

type observe func(tidings.Observation)

func (f observe) Observe(_ context.Context, o tidings.Observation) { f(o) }

// payloads is a codec that writes the payload alone, as a team may that has such
// consumers; the metadata is in the headers where the broker has them.
type payloads struct{ codec.Codec }

func (p payloads) Encode(e *codec.Envelope, features driver.Features) ([]byte, driver.Headers, error) {
	_, headers, err := p.Codec.Encode(e, features)
	return e.Payload, headers, err
}

// heard is a line of the TypeScript consumer.
type heard struct {
	Subscription, UserID, Email, Name, AggregateID, OccurredAt string
	Version, Suppressed                                        int
	Ready                                                      bool
}

// What Go publishes is handled in TypeScript, in both forms.
func TestGoToTypeScript(t *testing.T) {
	onEach(t, func(t *testing.T, script, driverName string, environment map[string]string) {
		events := newBus(t, environment, tidings.Options{})
		bare := newBus(t, environment, tidings.Options{Codec: payloads{codec.DomainEvents()}})
		// The queue or topic is there before the consumer asks for it.
		publish := func(b *tidings.Bus, events ...tidings.DomainEvent) {
			t.Helper()
			if err := b.Publish(t.Context(), events...); err != nil {
				t.Fatal(err)
			}
		}
		first := userCreated.New("user-1", user(1))
		if driverName != "redis" {
			publish(events, first)
		}
		consumer := node(script, "consume", driverName, environment)
		input, err := consumer.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		output, err := consumer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := consumer.Start(); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var handled []string
		suppressed := make(map[string]int)
		ready := make(chan struct{})
		read := make(chan struct{})
		go func() {
			defer close(read)
			for scanner := bufio.NewScanner(output); scanner.Scan(); {
				var line heard
				if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
					t.Errorf("%q: %v", scanner.Text(), err)
					continue
				}
				mu.Lock()
				switch {
				case line.Ready:
					close(ready)
				case line.Suppressed > 0:
					suppressed[line.Subscription]++
				default:
					handled = append(handled, fmt.Sprintf("%s %s %s %s", line.Subscription, line.UserID, line.Email, line.Name))
					if line.AggregateID != line.UserID {
						t.Errorf("aggregate %s of %s", line.AggregateID, line.UserID)
					}
					if whole := line.UserID == "user-1" || line.UserID == "user-2"; whole {
						at, err := time.Parse(time.RFC3339, line.OccurredAt)
						if line.Version != 1 || err != nil || time.Since(at).Abs() > time.Minute {
							t.Errorf("event of %s: version %d, occurred at %s: %v", line.UserID, line.Version, line.OccurredAt, err)
						}
					}
				}
				mu.Unlock()
			}
		}()
		select {
		case <-ready:
		case <-read:
			t.Fatal("the TypeScript consumer ended")
		case <-time.After(patience):
			t.Fatal("the TypeScript consumer is not ready")
		}
		if driverName == "redis" { // what was published before is nobody's
			publish(events, first)
		}
		publish(events, userCreated.New("user-2", user(2)))
		publish(bare, userCreated.New("user-3", user(3)), userCreated.New("user-4", user(4)))
		publish(events, first) // again
		var want []string
		for _, name := range subscriptions {
			for n := 1; n <= 4; n++ {
				p := user(n)
				want = append(want, fmt.Sprintf("%s %s %s %s", name, p.UserID, p.Email, p.Name))
			}
		}
		got := func() string {
			mu.Lock()
			defer mu.Unlock()
			return fmt.Sprintf("%v suppressed, handled:\n%s", suppressed, strings.Join(slices.Sorted(slices.Values(handled)), "\n"))
		}
		wanted := fmt.Sprintf("%v suppressed, handled:\n%s", map[string]int{subscriptions[0]: 1, subscriptions[1]: 1}, strings.Join(want, "\n"))
		eventually(t, "all are handled once", func() bool { return got() == wanted }, got)
		_ = input.Close()
		<-read
		if err := consumer.Wait(); err != nil {
			t.Errorf("the TypeScript consumer: %v", err)
		}
		for _, b := range []*tidings.Bus{events, bare} {
			if err := b.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
}
