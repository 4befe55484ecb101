package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// database is a schema of one run.
type database struct {
	url, schema string
	admin       *pgxpool.Pool
}

func newDatabase(ctx context.Context, url string) (*database, error) {
	admin, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	d := &database{url: url, schema: fmt.Sprintf("compare_%d_%d", os.Getpid(), time.Now().UnixMilli()%1_000_000), admin: admin}
	if _, err := admin.Exec(ctx, "CREATE SCHEMA "+d.schema); err != nil {
		admin.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	return d, nil
}

// pool is one that a process of its own would have, with pgx's default size.
func (d *database) pool(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(d.url)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	config.ConnConfig.RuntimeParams["search_path"] = d.schema
	return pgxpool.NewWithConfig(ctx, config)
}

func (d *database) describe(ctx context.Context) (text string, err error) {
	err = d.admin.QueryRow(ctx, "SELECT 'PostgreSQL ' || split_part(current_setting('server_version'), ' ', 1) || ', fsync ' || current_setting('fsync')").Scan(&text)
	return text, err
}

func (d *database) drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := d.admin.Exec(ctx, "DROP SCHEMA "+d.schema+" CASCADE")
	d.admin.Close()
	return err
}
