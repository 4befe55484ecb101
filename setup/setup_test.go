package setup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver/drivertest"
	"github.com/tidings-go/tidings/driver/kafka"
	"github.com/tidings-go/tidings/driver/sqs/sqstest"
	"github.com/tidings-go/tidings/setup"
)

func build(t *testing.T, environment map[string]string, options *setup.Options) error {
	t.Helper()
	bus, err := setup.New(t.Context(), setup.Read(func(name string) string { return environment[name] }), options)
	if err == nil {
		t.Cleanup(func() { _ = bus.Close(context.Background()) })
	}
	return err
}

func TestEachMistakeNamesItsVariable(t *testing.T) {
	for name, test := range map[string]struct {
		environment map[string]string
		want        []string
	}{
		"unknown driver":      {map[string]string{"EVENT_DRIVER": "rabbit"}, []string{`EVENT_DRIVER is "rabbit": it is one of in-memory, kafka, postgres, redis, redis-streams, sqlite, sqs`}},
		"production by name":  {map[string]string{"EVENT_DRIVER": "in-memory", "EVENT_ENV": "production"}, []string{"EVENT_ENV is production and EVENT_DRIVER is in-memory", "kafka"}},
		"production":          {map[string]string{"EVENT_ENV": "production"}, []string{"EVENT_ENV is production"}},
		"unknown environment": {map[string]string{"EVENT_ENV": "prod"}, []string{`EVENT_ENV is "prod": it is production, staging, development or test`}},
		"several at once": {map[string]string{"EVENT_DRIVER": "kafka", "EVENT_ENV": "prod", "KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_TLS_KEY": "x"},
			[]string{"EVENT_ENV", "KAFKA_BROKERS is not set", "KAFKA_SASL_USER is not set", "KAFKA_SASL_PASSWORD is not set", "KAFKA_TLS_CA is not set"}},
		"all at once, the driver's too": {map[string]string{"EVENT_DRIVER": "kafka", "EVENT_ENV": "prod", "EVENT_NAMESPACE": "a b", "KAFKA_SASL_USER": "app"},
			[]string{"EVENT_ENV", "KAFKA_BROKERS is not set", "KAFKA_SASL_USER is set and KAFKA_SASL_MECHANISM is not set", "KAFKA_SASL_PASSWORD is not set", `Namespace "a b"`}},
		"a url":              {map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "127.0.0.1:1,kafka://app:secret@host:9092"}, []string{"KAFKA_BROKERS: address 2 has a scheme, a user or a path"}},
		"no such file":       {map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "127.0.0.1:1", "KAFKA_TLS_CA": "/nowhere/ca.pem"}, []string{"KAFKA_TLS_CA: open /nowhere/ca.pem"}},
		"not an address":     {map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "nonsense"}, []string{"KAFKA_BROKERS", "nonsense"}},
		"bad namespace":      {map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "127.0.0.1:1", "EVENT_NAMESPACE": "a b"}, []string{"EVENT_NAMESPACE", "a b"}},
		"no url for redis":   {map[string]string{"EVENT_DRIVER": "redis"}, []string{"EVENT_DRIVER is redis and REDIS_URL is not set"}},
		"no url for streams": {map[string]string{"EVENT_DRIVER": "redis-streams"}, []string{"EVENT_DRIVER is redis-streams and REDIS_URL is not set"}},
		"not a redis url":    {map[string]string{"EVENT_DRIVER": "redis-streams", "REDIS_URL": "http://app:secret@host"}, []string{"REDIS_URL is not redis://host:port"}},
		"no redis there":     {map[string]string{"EVENT_DRIVER": "redis-streams", "REDIS_URL": "redis://app:secret@127.0.0.1:1"}, []string{"EVENT_DRIVER=redis-streams", "REDIS_URL=redis://127.0.0.1:1"}},
		"no pub/sub there":   {map[string]string{"EVENT_DRIVER": "redis", "REDIS_URL": "redis://app:secret@127.0.0.1:1"}, []string{"EVENT_DRIVER=redis,", "REDIS_URL=redis://127.0.0.1:1"}},
		"odd claims":         {map[string]string{"EVENT_CLAIMS": "memcached", "EVENT_CLAIMS_KEEP": "long"}, []string{`EVENT_CLAIMS is "memcached"`, `EVENT_CLAIMS_KEEP is "long"`}},
		"claims without url": {map[string]string{"EVENT_CLAIMS": "redis"}, []string{"EVENT_CLAIMS is redis and REDIS_URL is not set"}},
		"sqs": {map[string]string{"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "SQS_FIFO": "maybe", "SQS_TOPICS": "x", "SQS_VISIBILITY_TIMEOUT": "soon", "SQS_PROVISION": "always", "SQS_QUEUE_URLS": "a.b.c"},
			[]string{`SQS_FIFO is "maybe"`, `SQS_TOPICS is "x"`, `SQS_VISIBILITY_TIMEOUT is "soon"`, `SQS_PROVISION is "always"`, `SQS_QUEUE_URLS: "a.b.c"`}},
		"sqs, half a second": {map[string]string{"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "SQS_VISIBILITY_TIMEOUT": "500ms"}, []string{"EVENT_DRIVER=sqs", "VisibilityTimeout is 500ms"}},
		"no endpoint":        {map[string]string{"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": "nowhere"}, []string{"AWS_ENDPOINT_URL is not"}},
		"no sqs there":       {map[string]string{"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, []string{"EVENT_DRIVER=sqs", "AWS_ENDPOINT_URL=http://127.0.0.1:1"}},
		"no database":        {map[string]string{"EVENT_DRIVER": "postgres"}, []string{"EVENT_DRIVER is postgres and DATABASE_URL is not set"}},
		"no file":            {map[string]string{"EVENT_DRIVER": "sqlite"}, []string{"EVENT_DRIVER is sqlite and SQLITE_PATH is not set"}},
		"not a database url": {map[string]string{"EVENT_DRIVER": "postgres", "DATABASE_URL": "postgres://app:secret@host:nonsense/x"}, []string{"DATABASE_URL is no address of PostgreSQL"}},
		"no postgres there":  {map[string]string{"EVENT_DRIVER": "postgres", "DATABASE_URL": "postgres://app:secret@127.0.0.1:1/x?password=secret"}, []string{"EVENT_MIGRATE=auto", "postgres://127.0.0.1:1/x"}},
		"never migrated":     {map[string]string{"EVENT_DRIVER": "sqlite", "SQLITE_PATH": filepath.Join(t.TempDir(), "a.db"), "EVENT_MIGRATE": "never"}, []string{"EVENT_DRIVER=sqlite", "there is none: call Migrate"}},
		"odd stores":         {map[string]string{"EVENT_DRIVER": "sqlite", "SQLITE_PATH": filepath.Join(t.TempDir(), "b.db"), "EVENT_DEAD_LETTERS": "redis"}, []string{`EVENT_DEAD_LETTERS is "redis"`}},
		"odd migration":      {map[string]string{"EVENT_DRIVER": "sqlite", "SQLITE_PATH": filepath.Join(t.TempDir(), "c.db"), "EVENT_MIGRATE": "often"}, []string{`EVENT_MIGRATE is "often"`}},
		"claims nowhere":     {map[string]string{"EVENT_CLAIMS": "database"}, []string{"neither DATABASE_URL nor SQLITE_PATH is set"}},
		"nobody is there":    {map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "127.0.0.1:1"}, []string{"EVENT_DRIVER=kafka", "KAFKA_BROKERS=127.0.0.1:1", "cannot be reached"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := build(t, test.environment, &setup.Options{CheckTimeout: 2 * time.Second})
			if err == nil {
				t.Fatal("there is no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error repeats a password: %v", err)
			}
		})
	}
}

func TestInMemoryByDefaultWarnsOnce(t *testing.T) {
	for name, test := range map[string]struct {
		environment map[string]string
		warnings    int
	}{
		"nothing set": {nil, 1},
		"development": {map[string]string{"EVENT_ENV": "development"}, 0},
		"by name":     {map[string]string{"EVENT_DRIVER": "in-memory"}, 0},
	} {
		var log bytes.Buffer
		err := build(t, test.environment, &setup.Options{Bus: tidings.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := strings.Count(log.String(), "level=WARN"); n != test.warnings || n > 0 && !strings.Contains(log.String(), "EVENT_ENV") {
			t.Errorf("%s: log %q", name, log.String())
		}
	}
}

func TestNoSecretIsShown(t *testing.T) {
	const secret = "correct-horse-battery"
	environment := map[string]string{"EVENT_DRIVER": "kafka", "KAFKA_BROKERS": "127.0.0.1:1", "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA_SASL_USER": "app", "KAFKA_SASL_PASSWORD": secret}
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	err := build(t, environment, &setup.Options{CheckTimeout: time.Second, Bus: tidings.Options{Logger: logger}})
	config := setup.Read(func(name string) string { return environment[name] })
	logger.Info("config", "config", config)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("config", "config", config, "pointer", &config, "inside", struct{ C setup.Config }{config})
	if text, err := json.Marshal(config); err != nil || strings.Contains(string(text), secret) {
		t.Errorf("the password is in %s (%v)", text, err)
	}
	for _, text := range []string{fmt.Sprint(err), fmt.Sprintf("%v %+v %#v %s", config, config, config, config), log.String()} {
		if strings.Contains(text, secret) {
			t.Errorf("the password is in %q", text)
		}
	}
}

// What a program says in code needs no variable.
func TestOptionsComeAfterTheEnvironment(t *testing.T) {
	bus, err := setup.New(t.Context(), setup.Config{Driver: "kafka"}, &setup.Options{
		CheckTimeout: -1, Kafka: func(o *kafka.Options) { o.Brokers = []string{"127.0.0.1:1"} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// Against a real broker: what FromEnv makes is connected.
func TestFromEnvOnKafka(t *testing.T) {
	drivertest.Server(t, "KAFKA_BROKERS")
	t.Setenv("EVENT_DRIVER", "kafka")
	t.Setenv("EVENT_ENV", "production")
	bus, err := setup.FromEnv(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// Config, Read and .env.example know the same variables.
func TestEveryVariableIsDocumented(t *testing.T) {
	var declared []string
	for _, field := range reflect.VisibleFields(reflect.TypeFor[setup.Config]()) {
		declared = append(declared, field.Tag.Get("env"))
	}
	var asked []string
	setup.Read(func(name string) string { asked = append(asked, name); return "" })
	example, err := os.ReadFile("../.env.example")
	if err != nil {
		t.Fatal(err)
	}
	var shown []string
	for _, match := range regexp.MustCompile(`(?m)^([A-Z_]+)=`).FindAllStringSubmatch(string(example), -1) {
		shown = append(shown, match[1])
	}
	slices.Sort(declared)
	slices.Sort(asked)
	slices.Sort(shown)
	if !slices.Equal(declared, asked) || !slices.Equal(declared, shown) {
		t.Errorf("Config has %v\nRead asks for %v\n.env.example shows %v", declared, asked, shown)
	}
}

// The modules are wired the same on every driver; EVENT_DRIVER chooses it.
func ExampleFromEnv() {
	ctx := context.Background()
	bus, err := setup.FromEnv(ctx, &setup.Options{Bus: tidings.Options{Source: "orders"}})
	if err != nil {
		slog.Error("no bus", "reason", err) // every complaint at once, each with its variable
		return
	}
	// … give each module its face: bus.Module("billing") …
	if err := bus.Run(ctx); err != nil {
		slog.Error("the bus stopped", "reason", err)
	}
}

func ExampleNew() {
	// A dependency-injection library calls New with a Config that it provides.
	config := setup.Config{Driver: "in-memory", Environment: setup.Development}
	bus, err := setup.New(context.Background(), config, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(config, bus != nil)
	// Output: setup.Config{EVENT_DRIVER="in-memory" EVENT_ENV="development" EVENT_NAMESPACE=""} true
}

func ExampleRead() {
	environment := map[string]string{"EVENT_DRIVER": "carrier-pigeon"} // FromEnv reads the process's
	_, err := setup.New(context.Background(), setup.Read(func(name string) string { return environment[name] }), nil)
	fmt.Println(err)
	// Output: setup: EVENT_DRIVER is "carrier-pigeon": it is one of in-memory, kafka, postgres, redis, redis-streams, sqlite, sqs
}

// Each driver is made by its variables alone, and asks its broker.
func TestEachDriver(t *testing.T) {
	server := miniredis.RunT(t)
	queues := sqstest.Start(t)
	for name, environment := range map[string]map[string]string{
		"redis":                      {"EVENT_DRIVER": "redis", "REDIS_URL": "redis://" + server.Addr()},
		"redis with claims":          {"EVENT_DRIVER": "redis", "REDIS_URL": "redis://" + server.Addr(), "EVENT_CLAIMS": "redis"},
		"redis-streams":              {"EVENT_DRIVER": "redis-streams", "REDIS_URL": "redis://" + server.Addr(), "EVENT_NAMESPACE": "shop"},
		"redis-streams, with claims": {"EVENT_DRIVER": "redis-streams", "REDIS_URL": "redis://" + server.Addr(), "EVENT_CLAIMS": "redis", "EVENT_CLAIMS_KEEP": "1h"},
		"sqs":                        {"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": queues.URL()},
		"sqs, all said": {"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": queues.URL(), "AWS_REGION": "eu-central-1", "SQS_FIFO": "false", "SQS_VISIBILITY_TIMEOUT": "10s",
			"SQS_QUEUE_URLS": "a.b.c=" + queues.URL() + "/0/mine,*=" + queues.URL() + "/0/others", "EVENT_NAMESPACE": "shop", "SQS_PROVISION": "never"},
		"sqlite":                 {"EVENT_DRIVER": "sqlite", "SQLITE_PATH": filepath.Join(t.TempDir(), "a.db"), "EVENT_NAMESPACE": "my-shop"},
		"memory, sqlite beside":  {"EVENT_CLAIMS": "database", "SQLITE_PATH": filepath.Join(t.TempDir(), "b.db"), "EVENT_DEAD_LETTERS": "database", "EVENT_ENV": "test"},
		"streams, sqlite beside": {"EVENT_DRIVER": "redis-streams", "REDIS_URL": "redis://" + server.Addr(), "EVENT_CLAIMS": "database", "SQLITE_PATH": filepath.Join(t.TempDir(), "c.db")},
		"sqs with topics":        {"EVENT_DRIVER": "sqs", "AWS_ENDPOINT_URL": queues.URL(), "SQS_TOPICS": "true"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := build(t, environment, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFromEnvOnPostgres(t *testing.T) {
	t.Setenv("DATABASE_URL", drivertest.Server(t, "TIDINGS_POSTGRES_URL"))
	t.Setenv("EVENT_DRIVER", "postgres")
	t.Setenv("EVENT_ENV", "production")
	t.Setenv("EVENT_NAMESPACE", "setup_test")
	bus, err := setup.FromEnv(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
