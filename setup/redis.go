package setup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/driver"
	"github.com/tidings-go/tidings/driver/redis"
	"github.com/tidings-go/tidings/driver/redis/streams"
	store "github.com/tidings-go/tidings/store/redis"
)

// redisAddress is the scheme and the hosts of REDIS_URL: what else is in it may be
// part of a password that was not encoded.
func redisAddress(c Config) string {
	u, err := url.Parse(c.RedisURL)
	if err != nil {
		return "(not a URL)"
	}
	option, err := rueidis.ParseURL(c.RedisURL)
	if err != nil || beyondHost(c.RedisURL) {
		return u.Scheme + "://…"
	}
	return u.Scheme + "://" + strings.Join(option.InitAddress, ",")
}

// beyondHost reports whether a URL looks as if a password with one of / ? # in it
// had not been encoded: what the password was cut at stands behind the host then.
func beyondHost(address string) bool {
	_, rest, found := strings.Cut(address, "://")
	at := strings.IndexAny(rest, "/?#")
	return found && at >= 0 && strings.ContainsAny(rest[at:], "@#")
}

// errEncode says what to do about that.
const errEncode = "has an @ or a # behind its host: encode / ? # @ : % of a password as %2F %3F %23 %40 %3A %25"

// redisClient reads REDIS_URL. A complaint repeats nothing of it: a password may be
// in it.
func redisClient(c Config, wanted string) (rueidis.ClientOption, error) {
	if c.RedisURL == "" {
		return rueidis.ClientOption{}, fmt.Errorf("%s and REDIS_URL %w: for example redis://localhost:6379", wanted, errMissing)
	}
	u, err := url.Parse(c.RedisURL)
	if err != nil || u.Host == "" || u.Scheme != "redis" && u.Scheme != "rediss" {
		return rueidis.ClientOption{}, errors.New("REDIS_URL is not redis://host:port or rediss://host:port")
	}
	if beyondHost(c.RedisURL) {
		return rueidis.ClientOption{}, errors.New("REDIS_URL " + errEncode)
	}
	option, err := rueidis.ParseURL(c.RedisURL)
	if err != nil {
		return rueidis.ClientOption{}, errors.New("REDIS_URL cannot be read: it is redis://[user:password@]host:port[/number]")
	}
	return option, nil
}

func openRedis(config Config, options *Options, _ Database) (driver.Driver, []error) {
	client, err := redisClient(config, "EVENT_DRIVER is redis")
	if err != nil {
		return nil, []error{err}
	}
	o := redis.Options{Client: client, Namespace: config.Namespace}
	if options.Redis != nil {
		options.Redis(&o)
	}
	d, err := redis.New(o)
	if err != nil {
		return nil, []error{fmt.Errorf("EVENT_DRIVER=redis, REDIS_URL=%s (and EVENT_NAMESPACE): %w", redisAddress(config), err)}
	}
	return d, nil
}

func openStreams(config Config, options *Options, _ Database) (driver.Driver, []error) {
	client, err := redisClient(config, "EVENT_DRIVER is redis-streams")
	if err != nil {
		return nil, []error{err}
	}
	o := streams.Options{Client: client, Namespace: config.Namespace}
	if options.RedisStreams != nil {
		options.RedisStreams(&o)
	}
	d, err := streams.New(o)
	if err != nil {
		return nil, []error{fmt.Errorf("EVENT_DRIVER=redis-streams, REDIS_URL=%s (and EVENT_NAMESPACE): %w", redisAddress(config), err)}
	}
	return d, nil
}

// sharedClaims is the claims store that setup opened; the bus closes it.
type sharedClaims struct {
	*store.Claims
	client rueidis.Client
}

// Close ends its connections.
func (c *sharedClaims) Close(context.Context) error {
	c.client.Close()
	return nil
}

// redisAnswer is how long Redis may take to answer a claim, unless REDIS_URL says
// another (write_timeout). The drivers have the same bound.
const redisAnswer = 5 * time.Second

// openClaims puts the store that EVENT_CLAIMS names into the options of the bus.
func openClaims(config Config, bus *tidings.Options) (*sharedClaims, []error) {
	keep, err := claimsKeep(config)
	var errs []error
	if err != nil && config.Claims != inDatabase { // else the database has said so
		errs = append(errs, err)
	}
	switch config.Claims {
	case "", inDatabase:
		return nil, errs
	case "redis":
	default:
		return nil, append(errs, fmt.Errorf("EVENT_CLAIMS is %q: it is empty, redis or database", config.Claims))
	}
	if bus.Claims != nil {
		return nil, append(errs, errors.New("EVENT_CLAIMS is redis and Options.Bus.Claims is set too: one of them"))
	}
	option, err := redisClient(config, "EVENT_CLAIMS is redis")
	if err != nil {
		return nil, append(errs, err)
	}
	option.DisableCache, option.ConnWriteTimeout = true, cmp.Or(option.ConnWriteTimeout, redisAnswer)
	client, err := rueidis.NewClient(option)
	if err != nil {
		return nil, append(errs, fmt.Errorf("EVENT_CLAIMS=redis, REDIS_URL=%s: %w", redisAddress(config), err))
	}
	claims := &sharedClaims{store.NewClaims(client, config.Namespace), client}
	bus.Claims = claims
	if bus.RedeliveryHorizon == 0 {
		bus.RedeliveryHorizon = keep
	}
	return claims, errs
}

// claimsKeep is EVENT_CLAIMS_KEEP, with the default.
func claimsKeep(config Config) (time.Duration, error) {
	if config.ClaimsKeep == "" {
		return 7 * 24 * time.Hour, nil
	}
	keep, err := time.ParseDuration(config.ClaimsKeep)
	if err != nil || keep <= 0 {
		return 0, fmt.Errorf("EVENT_CLAIMS_KEEP is %q: a duration such as 168h", config.ClaimsKeep)
	}
	return keep, nil
}
