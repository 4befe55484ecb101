package setup_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/kafka"
	"github.com/tidings-go/tidings/driver/redis"
	"github.com/tidings-go/tidings/driver/redis/redistest"
	"github.com/tidings-go/tidings/driver/redis/streams"
	"github.com/tidings-go/tidings/driver/sqs"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
	"github.com/tidings-go/tidings/setup"
)

// planted is a password with every character that is written differently somewhere.
// Its first and last part are what is looked for, so that a piece is found too.
const planted = `pl4nted"/a@b#c?d&e%f:g+h' {i}pl4nted`

// plantedForms are what an output must not have.
func plantedForms() []string {
	return []string{"pl4nted", base64.StdEncoding.EncodeToString([]byte(planted)), base64.RawURLEncoding.EncodeToString([]byte(planted))}
}

// output collects all that is said; it may be written to from any goroutine.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// show writes a value in every form in which a program may show it.
func (o *output) show(values ...any) {
	textual := slog.New(slog.NewTextHandler(o, nil))
	lines := slog.New(slog.NewJSONHandler(o, nil))
	for _, v := range values {
		fmt.Fprintf(o, "%v\n%+v\n%#v\n%s\n%q\n%v\n", v, v, v, v, v, []any{v})
		text, err := json.Marshal(v)
		fmt.Fprintf(o, "%s %v\n", text, err)
		text, err = json.Marshal(map[string]any{"inside": v})
		fmt.Fprintf(o, "%s %v\n", text, err)
		textual.Info("shown", "value", v, "inside", struct{ Value any }{v})
		lines.Info("shown", "value", v, "inside", struct{ Value any }{v})
	}
}

type plantPayload struct {
	N int `json:"n"`
}

var plantGrown = tidings.Define[plantPayload]("plants.plant.grown", 1, tidings.Repeatable)

// The secret of every setting, in every kind of failure and without one, is in no
// error, no log at the loudest level and no printed configuration.
func TestAPlantedSecretIsNowhere(t *testing.T) {
	encoded, inQuery := url.UserPassword("app", planted).String(), url.QueryEscape(planted)
	redisServer := func(t *testing.T) *redistest.Server {
		s := redistest.Start(t)
		if err := s.Do("CONFIG", "SET", "requirepass", planted).Error(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	onlyPassword := strings.TrimPrefix(encoded, "app")
	kafkaSecure := func(t *testing.T, change map[string]string) map[string]string {
		environment := map[string]string{
			"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": drivertest.Server(t, "TIDINGS_KAFKA_SECURE_BROKERS"), "KAFKA_TLS_CA": os.Getenv("TIDINGS_KAFKA_SECURE_CA"),
			"KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USER": "app", "KAFKA_SASL_PASSWORD": planted,
		}
		for name, value := range change {
			environment[name] = value
		}
		return environment
	}
	postgres := func(t *testing.T, database, query string) map[string]string {
		u, err := url.Parse(drivertest.Server(t, "TIDINGS_POSTGRES_URL"))
		if err != nil {
			t.Fatal(err)
		}
		u.User, u.Path, u.RawQuery = url.UserPassword(u.User.Username(), planted), database, query
		return map[string]string{"EVENT_DRIVER": "postgres", "DATABASE_URL": u.String(), "EVENT_NAMESPACE": "secrets_test"}
	}
	set := func(driver string, pairs ...string) func(*testing.T) map[string]string {
		return func(*testing.T) map[string]string {
			environment := map[string]string{"EVENT_DRIVER": driver}
			for n := 0; n+1 < len(pairs); n += 2 {
				environment[pairs[n]] = pairs[n+1]
			}
			return environment
		}
	}
	cases := map[string]struct {
		environment func(*testing.T) map[string]string
		works       bool
	}{
		"kafka, nobody there":       {environment: set("kafka", "KAFKA_BROKERS", "127.0.0.1:1", "KAFKA_SASL_MECHANISM", "SCRAM-SHA-512", "KAFKA_SASL_USER", "app", "KAFKA_SASL_PASSWORD", planted)},
		"kafka, unknown mechanism":  {environment: set("kafka", "KAFKA_BROKERS", "127.0.0.1:1", "KAFKA_SASL_MECHANISM", "GSSAPI", "KAFKA_SASL_USER", "app", "KAFKA_SASL_PASSWORD", planted)},
		"kafka, no mechanism":       {environment: set("kafka", "KAFKA_BROKERS", "127.0.0.1:1", "KAFKA_SASL_PASSWORD", planted)},
		"kafka, plain without TLS":  {environment: set("kafka", "KAFKA_BROKERS", "192.0.2.1:9092", "KAFKA_SASL_MECHANISM", "PLAIN", "KAFKA_SASL_USER", "app", "KAFKA_SASL_PASSWORD", planted)},
		"kafka, in the brokers":     {environment: set("kafka", "KAFKA_BROKERS", "kafka://"+encoded+"@127.0.0.1:1")},
		"kafka, raw in the brokers": {environment: set("kafka", "KAFKA_BROKERS", "app:"+planted+"@127.0.0.1:1")},
		"kafka, wrong password":     {environment: func(t *testing.T) map[string]string { return kafkaSecure(t, nil) }},
		"kafka, wrong password, plain": {environment: func(t *testing.T) map[string]string {
			return kafkaSecure(t, map[string]string{"KAFKA_SASL_MECHANISM": "PLAIN"})
		}},
		"kafka, unknown authority": {environment: func(t *testing.T) map[string]string {
			return kafkaSecure(t, map[string]string{"KAFKA_TLS_CA": "system"})
		}},
		"kafka, no SASL there": {environment: func(t *testing.T) map[string]string {
			return kafkaSecure(t, map[string]string{"KAFKA_BROKERS": drivertest.Server(t, "KAFKA_BROKERS"), "KAFKA_TLS_CA": ""})
		}},
	}
	for _, name := range []string{"redis", "redis-streams"} {
		cases[name+", nobody there"] = struct {
			environment func(*testing.T) map[string]string
			works       bool
		}{environment: set(name, "REDIS_URL", "redis://"+encoded+"@127.0.0.1:1")}
	}
	for name, c := range map[string]struct {
		environment func(*testing.T) map[string]string
		works       bool
	}{
		"redis, not encoded":       {environment: set("redis", "REDIS_URL", "redis://app:"+planted+"@127.0.0.1:1")},
		"redis, hash not encoded":  {environment: set("redis-streams", "REDIS_URL", "redis://:#pl4nted@127.0.0.1:1")},
		"redis, slash not encoded": {environment: set("redis-streams", "REDIS_URL", "redis://app:12/pl4nted@127.0.0.1:1")},
		"redis, query not encoded": {environment: set("redis", "REDIS_URL", "redis://app:12?pl4nted@127.0.0.1:1")},
		"redis, another scheme":    {environment: set("redis", "REDIS_URL", "http://"+encoded+"@127.0.0.1:1")},
		"redis, claims":            {environment: set("in-memory", "EVENT_ENV", "test", "EVENT_CLAIMS", "redis", "REDIS_URL", "redis://"+encoded+"@127.0.0.1:1")},
		"redis, no password needed": {environment: func(t *testing.T) map[string]string {
			return set("redis", "REDIS_URL", "redis://"+encoded+"@"+redistest.Start(t).Address())(t)
		}},
		"redis, wrong password": {environment: func(t *testing.T) map[string]string {
			return set("redis-streams", "REDIS_URL", "redis://"+strings.TrimPrefix(url.UserPassword("app", planted+"x").String(), "app")+"@"+redisServer(t).Address())(t)
		}},
		"redis, unknown user": {environment: func(t *testing.T) map[string]string {
			return set("redis", "REDIS_URL", "redis://"+encoded+"@"+redisServer(t).Address())(t)
		}},
		"redis, no such database": {environment: func(t *testing.T) map[string]string {
			return set("redis", "REDIS_URL", "redis://"+onlyPassword+"@"+redisServer(t).Address()+"/99")(t)
		}},
		"redis, no TLS there": {environment: func(t *testing.T) map[string]string {
			return set("redis", "REDIS_URL", "rediss://"+onlyPassword+"@"+redisServer(t).Address())(t)
		}},
		"redis": {works: true, environment: func(t *testing.T) map[string]string {
			return set("redis", "REDIS_URL", "redis://"+onlyPassword+"@"+redisServer(t).Address(), "EVENT_CLAIMS", "redis")(t)
		}},
		"redis-streams": {works: true, environment: func(t *testing.T) map[string]string {
			return set("redis-streams", "REDIS_URL", "redis://"+onlyPassword+"@"+redisServer(t).Address())(t)
		}},
		"postgres, nobody there":        {environment: set("postgres", "DATABASE_URL", "postgres://"+encoded+"@127.0.0.1:1/shop")},
		"postgres, in the query":        {environment: set("postgres", "DATABASE_URL", "postgres://app@127.0.0.1:1/shop?password="+inQuery)},
		"postgres, as words":            {environment: set("postgres", "DATABASE_URL", "host=127.0.0.1 port=1 user=app dbname=shop password=pl4nted")},
		"postgres, odd words":           {environment: set("postgres", "DATABASE_URL", "host=127.0.0.1 port=one password=pl4nted")},
		"postgres, not encoded":         {environment: set("postgres", "DATABASE_URL", "postgres://app:"+planted+"@127.0.0.1:1/shop")},
		"postgres, slash not encoded":   {environment: set("postgres", "DATABASE_URL", "postgres://app:12/pl4nted@127.0.0.1:1/shop")},
		"postgres, for claims":          {environment: set("in-memory", "EVENT_ENV", "test", "EVENT_CLAIMS", "database", "DATABASE_URL", "postgres://"+encoded+"@127.0.0.1:1/shop")},
		"postgres, no such database":    {environment: func(t *testing.T) map[string]string { return postgres(t, "no_such_database", "") }},
		"postgres, no TLS there":        {environment: func(t *testing.T) map[string]string { return postgres(t, "postgres", "sslmode=require") }},
		"postgres":                      {works: true, environment: func(t *testing.T) map[string]string { return postgres(t, "postgres", "sslmode=disable") }},
		"sqs, nobody there":             {environment: set("sqs", "AWS_ENDPOINT_URL", "http://127.0.0.1:1", "AWS_REGION", "eu-central-1")},
		"sqs, in the endpoint":          {environment: set("sqs", "AWS_ENDPOINT_URL", "http://"+encoded+"@127.0.0.1:1", "AWS_REGION", "eu-central-1")},
		"sqs, raw in the endpoint":      {environment: set("sqs", "AWS_ENDPOINT_URL", "http://app:"+planted+"@127.0.0.1:1", "AWS_REGION", "eu-central-1")},
		"sqs, in the queues":            {environment: set("sqs", "AWS_ENDPOINT_URL", "http://127.0.0.1:1", "SQS_QUEUE_URLS", "a.b.c=https://"+encoded+"@127.0.0.1:1/q")},
		"sqs, raw in the queues":        {environment: set("sqs", "AWS_ENDPOINT_URL", "http://127.0.0.1:1", "SQS_QUEUE_URLS", "a.b.c=https://app:"+planted+"@127.0.0.1:1/q")},
		"sqs, in queues without a type": {environment: set("sqs", "AWS_ENDPOINT_URL", "http://127.0.0.1:1", "SQS_QUEUE_URLS", "https://"+encoded+"@127.0.0.1:1/q")},
		"sqs": {works: true, environment: func(t *testing.T) map[string]string {
			return set("sqs", "AWS_ENDPOINT_URL", sqstest.Start(t).URL(), "AWS_REGION", "eu-central-1")(t)
		}},
	} {
		cases[name] = c
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIDpl4nted")
			t.Setenv("AWS_SECRET_ACCESS_KEY", planted)
			t.Setenv("AWS_SESSION_TOKEN", planted)
			t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
			environment := c.environment(t)
			said := &output{}
			before := log.Writer()
			log.SetOutput(said)
			defer log.SetOutput(before)
			err := useEverything(t, environment, said, c.works)
			if (err == nil) != c.works {
				t.Errorf("the error is %v", err)
			}
			said.show(err)
			fmt.Fprintf(said, "%+v", err)
			for _, form := range plantedForms() {
				for line := range strings.Lines(said.String()) {
					if strings.Contains(strings.ToLower(line), strings.ToLower(form)) {
						t.Errorf("the secret is in: %s", line)
					}
				}
			}
		})
	}
}

// useEverything makes a bus, publishes, handles, fails, and stops, and writes all
// that is said meanwhile.
func useEverything(t *testing.T, environment map[string]string, said *output, works bool) error {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}))
	config := setup.Read(func(name string) string { return environment[name] })
	said.show(config, &config)
	options := &setup.Options{
		CheckTimeout: 3 * time.Second,
		Bus:          tidings.Options{Logger: logger, DrainTimeout: 10 * time.Second},
		Kafka:        func(o *kafka.Options) { said.show(*o, o, o.SASL, &o.SASL) },
		Redis:        func(o *redis.Options) { said.show(*o, o) },
		RedisStreams: func(o *streams.Options) { said.show(*o, o) },
		SQS:          func(o *sqs.Options) { said.show(*o, o) },
	}
	bus, err := setup.New(t.Context(), config, options)
	if err != nil {
		return err
	}
	said.show(bus.Health())
	handled := make(chan struct{}, 8)
	module := bus.Module("plants")
	subscribe := &tidings.SubscribeOptions{MaxAttempts: 1, StartAt: tidings.StartNow, EachInstance: config.Driver == "redis"}
	module.Subscribe("water", subscribe, plantGrown.On(func(_ context.Context, e tidings.Event[plantPayload]) error {
		logger.Info("handled", "event", e)
		handled <- struct{}{}
		return errors.New("no water")
	}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- bus.Run(ctx) }()
	defer cancel()
	ready, cancelReady := context.WithTimeout(ctx, 10*time.Second)
	defer cancelReady()
	if err := bus.Ready(ready); err != nil {
		return err
	}
	if err := module.Publish(ctx, plantGrown.New("p-1", plantPayload{1})); err != nil {
		return err
	}
	if works {
		select {
		case <-handled:
		case <-time.After(10 * time.Second):
			t.Error("nothing was handled")
		}
	}
	said.show(bus.Health())
	cancel()
	return <-ended
}
